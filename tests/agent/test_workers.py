"""The processes of a node are watched, asked to stop, and killed with all that they have started."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes
from torch.distributed.elastic.multiprocessing.api import SubprocessContext

from pipeline.agent.signals import Signals
from pipeline.agent.workers import WorkerExit, Workers
from pipeline.commands.drill.local_job import is_running
from pipeline.process.error_file import write_report

Start = Callable[..., Workers]
OBEYS = "trap 'exit 75' TERM; touch $1; while true; do sleep 0.01; done"
INSISTS = "trap 'trap \"exit 3\" TERM' TERM; touch $1; while true; do sleep 0.01; done"
STUBBORN = "trap '' TERM; touch $1; while true; do sleep 0.01; done"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start shells, the first one as rank 4; each may touch the file `ready-<its local rank>`."""
    contexts: list[SubprocessContext] = []

    def started(*programs: str, grace: float = 10.0, signals: Signals | None = None) -> Workers:
        context = start_processes(
            "workers",
            "/bin/sh",
            {rank: ("-c", program, "sh", str(tmp_path / f"ready-{rank}")) for rank, program in enumerate(programs)},
            {rank: {} for rank in range(len(programs))},
            DefaultLogsSpecs(log_dir=str(tmp_path / "logs")),
        )
        assert isinstance(context, SubprocessContext)
        contexts.append(context)
        return Workers(context, {rank: rank + 4 for rank in range(len(programs))}, grace, signals or Signals())

    yield started
    for context in contexts:
        context.close(signal.SIGKILL, 1)


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def codes(ends: list[WorkerExit]) -> dict[int, int]:
    return {end.rank: end.code for end in ends}


def test_each_exit_is_seen_once_with_the_rank_of_its_process(start: Start) -> None:
    workers = start("exit 0", "exit 75", "exit 7")
    seen: list[WorkerExit] = []

    def all_seen() -> bool:
        seen.extend(workers.poll())
        return not workers.running

    until(all_seen)
    assert codes(seen) == codes(workers.ended) == {4: 0, 5: 75, 6: 7}
    assert {end.rank: end.crashed for end in seen} == {4: False, 5: False, 6: True}
    assert workers.poll() == []
    assert not workers.signalled


def test_a_killed_process_comes_before_those_that_failed_because_of_it(start: Start, tmp_path: Path) -> None:
    workers = start("exit 1", "kill -9 $$")
    write_report(workers._context.error_files[0], 1, "RuntimeError: Connection closed by peer", "", lost_peer=True)
    until(lambda: all(process.poll() is not None for process in workers._processes.values()))
    first, second = workers.poll()
    assert (first.rank, first.code, first.report) == (5, -signal.SIGKILL, None)
    assert second.report is not None
    assert (second.rank, second.report.message) == (4, "RuntimeError: Connection closed by peer")
    assert second.report.lost_peer


def test_who_is_asked_to_stop_ends_as_it_decides(start: Start, tmp_path: Path) -> None:
    workers = start(OBEYS, "exit 0")
    until((tmp_path / "ready-0").exists)
    until(lambda: bool(workers.poll()))
    workers.stop()
    assert codes(workers.ended) == {4: 75, 5: 0}
    assert workers.signalled


def test_who_does_not_stop_within_the_grace_is_killed(start: Start, tmp_path: Path) -> None:
    workers = start(STUBBORN, grace=0.2)
    until((tmp_path / "ready-0").exists)
    workers.stop()
    assert codes(workers.ended) == {4: -signal.SIGKILL}


def test_a_second_signal_is_forwarded_while_workers_end(start: Start, tmp_path: Path) -> None:
    signals = Signals()
    signals.received.append(signal.SIGTERM)
    workers = start(INSISTS, signals=signals)
    until((tmp_path / "ready-0").exists)
    workers.send(signal.SIGTERM)
    threading.Timer(0.3, signals.received.append, (signal.SIGUSR1,)).start()
    workers.finish()
    assert codes(workers.ended) == {4: 3}


def test_children_that_a_crashed_worker_leaves_are_killed(start: Start, tmp_path: Path) -> None:
    workers = start("sleep 60 & echo $! > $1; exit 1")
    until(lambda: not workers.poll() and not workers.running)
    child = int((tmp_path / "ready-0").read_text())
    assert is_running(child)
    workers.finish()
    until(lambda: not is_running(child))
