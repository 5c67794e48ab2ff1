"""Kill anything, at any moment, and lose nothing: a training over two nodes, each with an agent of its own."""

import os
import signal
import time
from pathlib import Path

import pytest

from pipeline.process.host_memory import HostMemory
from pipeline.run.run_dir import RunDir
from tests.support.commands import command
from tests.support.resumes import same_end
from tests.support.runs import FIT
from tests.support.sigterm_trials import KINDS, Job, job, trial

PACED = ("--trainer.max_epochs=10", "--checkpoints.every_n_steps=10", "--model.pause=0.03")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_at_any_moment_leaves_the_last_step_durable(tmp_path: Path, kind: str, seed: int) -> None:
    trial(kind, tmp_path, seed)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize("said", ["", pytest.param("started on", marks=pytest.mark.slow)])
def test_sigterm_to_one_rank_before_the_first_step_ends_both_nodes_at_once(
    tmp_path: Path, said: str, node: int
) -> None:
    with job(tmp_path) as training:
        began = time.monotonic()
        while not training.hears(node):
            assert time.monotonic() - began < 60, training.said
            time.sleep(0.02)
        training.until(said)
        began = time.monotonic()
        os.kill(training.rank(node), signal.SIGTERM)
        assert [agent.wait(60) for agent in training.agents] == [75, 75], training.said
        assert time.monotonic() - began < 10, "not after the grace of 20 s"
        assert "Traceback" not in training.said
        assert "restart" not in training.said


def attempts(training: Job) -> int:
    return len(RunDir(str(training.run)).attempts())


def source(training: Job, attempt: int) -> str | None:
    """From where an attempt has resumed."""
    record = RunDir(str(training.run)).read_json(RunDir.attempt(attempt))
    assert record is not None
    return record["resumed_from"]


def until_kept(training: Job, node: int) -> None:
    """Wait until a node has a state in memory that is newer than any commit."""
    agent, began = training.agents[node].pid, time.monotonic()
    links = {fd: os.readlink(f"/proc/{agent}/fd/{fd}") for fd in os.listdir(f"/proc/{agent}/fd")}
    files = {link.split()[0]: f"/proc/{agent}/fd/{fd}" for fd, link in links.items() if "memfd:pipeline-" in link}
    memory = HostMemory([files[f"/memfd:pipeline-{name}"] for name in ("index", "0", "1")])
    while True:
        kept = max((each.about["record"]["step"] for each in memory.states()), default=0)
        if kept > max(RunDir(str(training.run)).steps()["json"], default=0):
            return
        assert time.monotonic() - began < 60, training.said
        time.sleep(0.05)


def goes_on(training: Job, attempt: int, steps: int = 12) -> None:
    """Wait until the next attempt has done some steps of its own."""
    began = time.monotonic()
    while attempts(training) < attempt:
        assert time.monotonic() - began < 60, training.said
        time.sleep(0.05)
    noted = len(training.steps(0))
    while len(training.steps(0)) < noted + steps:
        assert time.monotonic() - began < 90, training.said
        time.sleep(0.05)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("standby", "memory"),
    [
        ("false", "memory"),
        pytest.param("true", "memory", marks=pytest.mark.slow),
        pytest.param("false", "storage", marks=pytest.mark.slow),
    ],
)
def test_disturbed_in_each_way_a_training_ends_like_one_that_nobody_has_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, standby: str, memory: str
) -> None:
    (tmp_path / "straight").mkdir()
    paced = (*PACED, "--trainer.max_epochs=20")
    with job(tmp_path / "straight", *paced) as straight:
        assert [agent.wait(90) for agent in straight.agents] == [0, 0], straight.said
        assert "Traceback" not in straight.said
        assert "Warning" not in straight.said
    (tmp_path / "disturbed").mkdir()
    monkeypatch.setenv("PET_STANDBY", standby)
    more = [*paced, "--collective_timeout=5", "--grace=8", f"--memory_checkpoints={str(memory == 'memory').lower()}"]
    if memory == "memory":
        more += ["--checkpoints.every_n_steps=1000", "--checkpoints.every_n_epochs=1000"]
    with job(tmp_path / "disturbed", *more, join=60, restarts=3) as training:
        training.until_step(25)
        if memory == "memory":
            until_kept(training, 0)
        # A rank is killed.
        os.kill(training.rank(1), signal.SIGKILL)
        goes_on(training, 2)
        assert "killed by SIGKILL: restart 1 of 3" in training.said
        assert source(training, 2) == memory

        # A node is asked to end, and replaced: no step is done twice.
        before = training.steps(1)
        training.agents[1].send_signal(signal.SIGTERM)
        assert training.agents[1].wait(30) == 75
        left = training.steps(1)
        training.agents[1] = training.start(1)
        goes_on(training, 3)
        assert training.steps(1)[len(left)] == left[-1] + 1 > before[-1]

        # The node that hosts the store is killed, and replaced.
        if memory == "memory":
            until_kept(training, 1)
        training.agents[0].kill()
        training.agents[0].wait(10)
        training.agents[0] = training.start(0)
        goes_on(training, 4)
        assert source(training, 4) == memory, "the new node gets it from the other one"

        # A rank stands still: its peer notices in the set time, and it is killed.
        stopped = training.rank(1)
        os.kill(stopped, signal.SIGSTOP)
        goes_on(training, 5, steps=1)
        assert not Path(f"/proc/{stopped}").exists()

        assert [agent.wait(90) for agent in training.agents] == [0, 0], training.said
        assert attempts(training) == 5, "each disturbance has cost one start"
        assert "Traceback" not in training.said, "nobody raised anything of its own"
    same_end(straight.run, training.run)
    verified = command("python", "-m", "pipeline", "verify", "--run_dir", training.run)
    assert verified.status == 0, verified.text
    assert "every sample is accounted for" in verified.out
    assert "goodput of 5 attempts" in verified.out


@pytest.mark.timeout(180)
def test_an_exception_on_one_rank_is_reported_once_with_its_traceback_and_restarted_within_the_budget(
    tmp_path: Path,
) -> None:
    broken = ("--model=tests.support.killable.FailsOnOneRank", "--trainer.max_epochs=2")
    with job(tmp_path, *broken, join=30, restarts=1) as training:
        assert [agent.wait(90) for agent in training.agents] == [1, 1], training.said
        assert attempts(training) == 2, "as often as the budget allows"
        said = training.said
        assert said.count("ZeroDivisionError: the model is broken on rank 1\n") == 2, "once for each attempt"
        assert said.count("Traceback (most recent call last)") == 2, said
        assert "Connection closed by peer" not in said, "an echo of it on the other rank"
        assert "restart 1 of 1" in training.log(0).read_text()
        attempt = RunDir(str(training.run)).read_json(RunDir.attempt(2))
        assert attempt is not None
        assert attempt["status"] == 1


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_with_a_node_killed_for_good_the_other_goes_on_and_a_new_one_is_taken_in(tmp_path: Path) -> None:
    more = ("--data.batch_size=null", "--data.global_batch_size=8", "--trainer.max_epochs=20", "--model.pause=0.05")
    with job(tmp_path, *PACED, *more, nnodes="1:2", join=60) as training:
        training.until_step(25)
        # The one that hosts the store.
        training.agents[0].kill()
        training.agents[0].wait(10)
        goes_on(training, 2)
        training.agents[0] = training.start(0)
        assert [agent.wait(90) for agent in training.agents] == [0, 0], training.said
        assert "a node joins: re-running rendezvous" in training.said
        verified = command("python", "-m", "pipeline", "verify", "--run_dir", training.run)
        assert verified.status == 0, verified.text
        assert "every sample is accounted for" in verified.out


@pytest.mark.timeout(120)
def test_a_run_directory_that_is_moved_away_between_two_attempts_is_not_started_afresh(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = command(
        *("python", "-m", "pipeline.agent", "--nproc_per_node=1", "--max_restarts=2", "-m", "pipeline", *FIT),
        *("--run_dir", run, "--trainer.callbacks+=tests.support.callbacks.LosesTheRun"),
        *(f"--trainer.callbacks.run={run}", "--trainer.callbacks.step=9"),
    )
    assert ended.status == 2, ended.text
    assert "nothing is left there of the attempt that this job started before" in ended.text
    assert sorted(RunDir(str(tmp_path / "away")).steps()["json"]) == [7]
    assert RunDir(str(run)).steps()["json"] == {}
