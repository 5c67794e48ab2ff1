"""Which state in memory is resumed, and how a node gets one that it lacks."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import memory_state
from pipeline.config.memory_state import MemoryState, RunMemory
from pipeline.process.host_memory import HostMemory
from pipeline.process.peer_transfer import TransferFailed
from pipeline.process.topology import Topology
from pipeline.run.run_dir import RunDir
from tests.support.checkpoints import a_record
from tests.support.host_memory import host_memory
from tests.support.rank_threads import ranks

Memories = Callable[[], HostMemory]


@pytest.fixture
def memories(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memories]:
    """Makes the memory of one node after the other, all in this process."""
    monkeypatch.setenv("TORCHX_JOB_ID", "launch")
    with ExitStack() as made:
        yield lambda: made.enter_context(host_memory())


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path / "run"))


def hold(
    memory: HostMemory,
    run: RunDir,
    attempt: int,
    step: int,
    content: bytes = b"state",
    more: dict[str, str] | None = None,
) -> None:
    with memory.writing() as (file, done):
        file.write(content)
        about = {"run": run.url, "launch": "launch", "attempt": attempt, "record": asdict(a_record(step))}
        done(about | (more or {}))


def newest(run: RunDir, memory: HostMemory | None, attempt: int = 9) -> tuple[int, int] | None:
    found = RunMemory(run, Topology(0, 0, 1, 1, 0, 1), attempt, memory).newest()
    return None if found is None else (found.attempt, found.step)


def trained(run: RunDir, attempt: int, first_step: int | None) -> None:
    run.write_json(RunDir.attempt(attempt), {"attempt": attempt, "first_step": first_step})


def test_the_newest_state_of_the_latest_attempt_is_resumed(memories: Memories, run: RunDir) -> None:
    memory = memories()
    assert newest(run, memory) is None
    hold(memory, run, 2, 50)
    hold(memory, run, 3, 40)
    assert newest(run, memory) == (3, 40), "the later attempt had gone back to an earlier step"
    assert newest(run, None) is None


@pytest.mark.parametrize("other", [{"run": "/another"}, {"launch": "of before"}])
def test_a_state_of_another_run_or_launch_is_not(memories: Memories, run: RunDir, other: dict[str, str]) -> None:
    memory = memories()
    hold(memory, run, 2, 50, more=other)
    assert newest(run, memory) is None


def test_a_state_that_a_later_attempt_has_not_resumed_is_not(memories: Memories, run: RunDir) -> None:
    memory = memories()
    hold(memory, run, 2, 50)
    trained(run, 2, 0)
    trained(run, 3, None)  # ended before it trained
    trained(run, 4, None)  # this one
    assert newest(run, memory, attempt=4) == (2, 50)
    trained(run, 3, 50)
    assert newest(run, memory, attempt=4) is None, "it may have been from the storage"
    run.write_json(RunDir.attempt(3), {"attempt": 3, "first_step": 50, "resumed_from": "memory"})
    assert newest(run, memory, attempt=4) == (2, 50), "it was killed before it had kept a state of its own"
    run.write_json(RunDir.attempt(3), {"attempt": 3, "first_step": 40, "resumed_from": "memory"})
    assert newest(run, memory, attempt=4) is None
    run.write(RunDir.attempt(3), b"no record")
    assert newest(run, memory, attempt=4) is None


def spread(
    monkeypatch: pytest.MonkeyPatch, run: RunDir, held: list[HostMemory | None], processes: int = 1
) -> list[object]:
    """What `obtain` returns on each rank."""

    def do(topology: Topology) -> str | None:
        own = held[topology.node]
        memory = RunMemory(run, topology, 3, own)
        state = MemoryState(**topology.agree("state", lambda: asdict(memory.newest())))  # type: ignore[arg-type]
        path = memory.obtain(state)
        return None if path is None else Path(path).read_text()

    return ranks(monkeypatch, processes * len(held), do, nodes=len(held))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_node_that_lacks_the_state_gets_it_from_one_that_has_it(
    monkeypatch: pytest.MonkeyPatch, memories: Memories, run: RunDir, processes: int
) -> None:
    held = [memories() for _ in range(4)]
    for number in (1, 3):
        hold(held[number], run, 2, 50)
    hold(held[2], run, 2, 40, b"old")
    assert spread(monkeypatch, run, held, processes) == ["state"] * 4 * processes
    assert all(newest(run, each) == (2, 50) for each in held)


def test_nodes_whose_states_are_not_the_same_resume_from_storage(
    monkeypatch: pytest.MonkeyPatch, memories: Memories, run: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    held = [memories(), memories()]
    hold(held[0], run, 2, 50, b"state")
    hold(held[1], run, 2, 50, b"stale")
    with caplog.at_level(logging.WARNING):
        assert spread(monkeypatch, run, held) == [None, None]
    assert "step 50 is not resumed from memory: replicas were not equal" in caplog.text


def test_where_a_node_cannot_get_it_all_resume_from_storage(
    monkeypatch: pytest.MonkeyPatch, memories: Memories, run: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> None:
        raise TransferFailed("10.0.0.1:4711: timed out")

    held: list[HostMemory | None] = [memories(), memories(), None]
    assert held[0] is not None
    hold(held[0], run, 2, 50)
    with caplog.at_level(logging.WARNING):
        assert spread(monkeypatch, run, held) == [None] * 3
        assert "node 2 could not fetch it: it has no such memory" in caplog.text
        monkeypatch.setattr(memory_state, "fetch", fails)
        assert spread(monkeypatch, run, [held[0], memories()]) == [None] * 2
    assert "node 1 could not fetch it: 10.0.0.1:4711: timed out" in caplog.text
