"""A problem of any rank is shown once: by rank 0 where it is everybody's, else by the rank that has it."""

import logging
import re
import sys

import pytest

from pipeline.process.topology import Topology
from pipeline.training.logs.one_voice import OneVoice
from tests.support.commands import torchrun

RANK = """
import logging, os, sys, time, warnings
from pipeline.process.topology import Topology
from pipeline.training.logs import console
own = Topology.from_environment()
console.set_up(own)
own.agree("met", lambda: 0)
log, rank = logging.getLogger("pipeline.data"), own.rank
log.info("an event of rank %d", rank)
log.warning("everybody's")
log.warning("waited %.1f s for a file", 1.5 + rank)
if rank:
    log.warning("of rank %d alone", rank)
    warnings.warn(f"a warning of Python's of rank {rank}")
    logging.getLogger("a.library").error("an error of a library's on rank %d", rank)
warnings.warn("everybody's warning of Python's")
if os.fork() == 0:  # as a loader worker is
    log.warning("in a loader worker of rank %d", rank)
    time.sleep(3)
    os._exit(0)
os.wait()
for _ in range(50):
    log.warning("the number %f changes", rank + time.monotonic())
console.settle()
"""


@pytest.mark.timeout(90)
def test_what_one_rank_has_to_say_is_shown_once_and_what_all_have_by_rank_0() -> None:
    ended = torchrun(3, "--no-python", sys.executable, "-c", RANK)
    assert ended.status == 0, ended.text
    lines = ended.err.splitlines()
    for text in ("an event of rank 0", "everybody's", "waited 1.5 s for a file"):
        assert lines.count(text) == 1, ended.err
    for rank in (1, 2):
        assert lines.count(f"rank {rank}: of rank {rank} alone") == 1
        assert lines.count(f"rank {rank}: an error of a library's on rank {rank}") == 1
        assert ended.err.count(f"UserWarning: a warning of Python's of rank {rank}") == 1
        assert lines.count(f"rank {rank}: in a loader worker of rank {rank}") == 1
        assert lines.count(f"rank {rank}: more warnings of this process are not shown") == 1
        assert not re.search(rf"an event of rank {rank}", ended.err)
    assert ended.err.count("UserWarning: everybody's warning of Python's") == 1
    assert not re.search("^rank . *: (everybody's|waited)", ended.err, re.MULTILINE)


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("pipeline", logging.WARNING, "", 0, text, None, None)


def test_what_no_store_can_settle_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    topology = Topology(rank=1, local_rank=1, world_size=2, processes=2, node=0, nodes=1)
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "x"}.items():
        monkeypatch.setenv(name, value)
    voice = OneVoice(topology, lambda each: said.append(each.getMessage()))
    voice.add(record("before the ranks have met"))
    voice.settle()
    assert said == ["before the ranks have met"]


def test_rank_0_shows_nothing_here_for_it_has_shown_all(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[logging.LogRecord] = []
    voice = OneVoice(Topology(0, 0, 2, 2, 0, 1), said.append)
    monkeypatch.setattr(Topology, "is_first_to_say", lambda *_: True)
    voice.add(record("x"))
    voice.settle()
    assert said == []
