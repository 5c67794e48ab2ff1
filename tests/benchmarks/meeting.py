"""How the start grows with the world size: what the store is asked for, which is one process and has to serve all."""

import logging
import os
from collections.abc import Callable

from tests.benchmarks.processes import forked, timed
from tests.benchmarks.subject import Contenders, Context, Reading, subject
from tests.support.meeting import Meeting


def counted(size: int, part: Callable[[Meeting], None]) -> Reading:
    """Microseconds, keys read and requests, each per thread."""
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    logging.disable(logging.CRITICAL)
    meeting = Meeting(size)
    taken = timed(lambda: part(meeting), size)
    return taken | {f"{name} each": meeting.total[name] / size for name in ("keys read", "requests")}


def sizes(context: Context, part: Callable[[Meeting], None], most: int, what: str) -> Contenders:
    log = context.folder / "log.txt"
    powers = [1 << power for power in range(1, most + 1)]
    return {f"{size:,} {what}": (lambda size=size: forked(counted, size, part, log=log)) for size in powers}


@subject("ranks", unit="us each", rounds=(1, 1, 3))
def ranks(context: Context) -> Contenders:
    """The ranks of a job agree on one thing and gather another, before training."""
    return sizes(context, Meeting.agree, context.pick(2, 6, 10), "ranks")


@subject("nodes", unit="us each", rounds=(1, 1, 1))
def nodes(context: Context) -> Contenders:
    """The agents of a job's nodes join a round."""
    return sizes(context, Meeting.join, context.pick(1, 4, 7), "nodes")
