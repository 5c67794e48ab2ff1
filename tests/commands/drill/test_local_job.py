"""A job of real agents on this machine is restarted as a launcher does it, and leaves nothing running."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.commands.drill.local_job import JobFailure, LocalJob, is_running, send

pytestmark = pytest.mark.timeout(90)
Launch = Callable[..., LocalJob]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Launch jobs, and kill what is left of them."""
    jobs: list[LocalJob] = []

    def launched(*fit: str, nodes: int = 1) -> LocalJob:
        jobs.append(LocalJob(fit, nodes, 1, {"NAME": "value"}, tmp_path / "logs"))
        jobs[-1].launch()
        return jobs[-1]

    yield launched
    for job in jobs:
        job.kill()


def until(happened: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_job_that_ends_well_is_done_and_not_due(launch: Launch) -> None:
    job = launch("--help")
    until(lambda: job.agent(0) is None)
    assert job.done
    assert job.due() == []
    assert job.endings == [(0, 0)]
    assert "--run_dir" in job.output()
    assert job.agents() == job.workers(0) == []


def test_a_users_mistake_ends_the_drill(launch: Launch) -> None:
    job = launch("--nonsense=1")
    until(lambda: job.agent(0) is None)
    with pytest.raises(JobFailure, match="the agent of node 0 ended with 2"):
        job.due()
    assert not job.done
    assert "nonsense" in job.output()


def test_a_job_of_which_all_agents_have_ended_is_launched_again(launch: Launch) -> None:
    job = launch(nodes=2)
    before = job.agents()
    assert len(before) == 2
    job.kill()
    assert not any(map(is_running, before))
    assert sorted(job.due()) == [0, 1]
    assert sorted(job.endings) == [(0, -signal.SIGKILL), (1, -signal.SIGKILL)]
    job.nodes = 1
    job.restart([0, 1])
    assert job.starts == 1
    assert len(job.agents()) == 1
    assert not set(job.agents()) & set(before)
    assert job.due() == []


def test_one_agent_is_restarted_once_the_others_are_not_about_to_end_too(launch: Launch) -> None:
    job = launch(nodes=2)
    first, second = job.agent(0), job.agent(1)
    assert second is not None
    send([second], signal.SIGKILL)
    until(lambda: job.agent(1) is None)
    assert job.due() == [], "the other one may end as well"
    job.replaced.add(1)
    assert job.due() == [1], "but here it is known to wait"
    job.restart([1])
    assert job.replaced == set()
    assert job.agent(0) == first
    assert job.agent(1) not in (None, second)


def test_a_process_that_was_not_waited_for_has_ended_all_the_same() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""], stdin=subprocess.DEVNULL)
    until(lambda: not is_running(process.pid))
    assert process.returncode is None
    send([process.pid], signal.SIGTERM)
    assert process.wait() == 0
    send([process.pid], signal.SIGTERM)
    assert not is_running(process.pid)


AGENT = """
import os, subprocess, sys, time
if (same := os.fork()) == 0:  # as between fork and exec
    time.sleep(60)
    os._exit(0)
if (ended := os.fork()) == 0:
    os._exit(0)
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
standby = subprocess.Popen([sys.executable, "-X", "standby=7", *sleep[1:]])
worker = subprocess.Popen(sleep)
print(worker.pid, same, standby.pid, ended, flush=True)
time.sleep(60)
"""


def test_of_an_agents_children_those_that_are_ranks_are_workers(launch: Launch, tmp_path: Path) -> None:
    job = launch("--help")
    job.kill()
    with subprocess.Popen([sys.executable, "-c", AGENT], stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        worker, *others = map(int, agent.stdout.readline().split())
        job._agents = [agent]  # type: ignore[list-item]
        try:
            until(lambda: job.workers(0) == [worker])
            assert len(others) == 3
        finally:
            for pid in (worker, *others[:2]):
                send([pid], signal.SIGKILL)
            agent.kill()
