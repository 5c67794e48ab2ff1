"""Over the size of the world: what agents and ranks ask of the store, which is one thread of one process."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.growth.curve import counted, curve
from tests.benchmarks.subject import Reading
from tests.support.meeting import Meeting

EACH, ALL, SENT, SERVED, TOOK = (
    "keys read by each",
    "keys read in all",
    "sent by the store",
    "CPU time of the store",
    "all of it",
)
LINES = {EACH: "keys", ALL: "keys", SENT: "bytes", SERVED: "s", TOOK: "s"}


def meet(size: int, part: Callable[[Meeting], None]) -> Reading:
    """Have so many threads take part."""
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    logging.disable(logging.CRITICAL)
    meeting = Meeting(size)
    served, began = meeting.store_seconds, time.perf_counter()
    part(meeting)
    took, keys = time.perf_counter() - began, meeting.total["keys read"]
    sent, served = meeting.total["bytes read"], meeting.store_seconds - served
    return {EACH: keys / size, ALL: keys, SENT: sent, SERVED: served, TOOK: took}


@curve("agents", "agents", LINES, {"tiny": (2, 4), "quick": counted(2, 32), "full": counted(2, 1024)})
def agents(size: int, _: Path) -> Reading:
    """The agents of a job's nodes join a round, and agree on its preflight."""
    return meet(size, Meeting.join)


@curve("ranks", "ranks", LINES, {"tiny": (2, 4, 8), "quick": counted(2, 256), "full": counted(2, 1024)}, rounds=3)
def ranks(size: int, _: Path) -> Reading:
    """The ranks of a job agree on one thing and gather another, before training."""
    return meet(size, Meeting.agree)
