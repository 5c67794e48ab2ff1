"""Kill anything, at any moment, and lose nothing: a training over two nodes, each with an agent of its own."""

import os
import signal
import time
from pathlib import Path

import pytest

from pipeline.run_dir import RunDir
from tests.conftest import command
from tests.test_exact_resume import same_end
from tests.trials import KINDS, Job, job, trial

SHORT = ("--trainer.max_epochs=12", "--checkpoints.every_n_steps=10")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_at_any_moment_leaves_the_last_step_durable(tmp_path: Path, kind: str, seed: int) -> None:
    trial(kind, tmp_path, seed)


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training, which nobody disturbs."""
    folder = tmp_path_factory.mktemp("straight")
    with job(folder, *SHORT) as training:
        assert [agent.wait(60) for agent in training.agents] == [0, 0], training.said
        assert "Traceback" not in training.said
    return training.run


def ended_like(straight: Path, training: Job) -> None:
    """The training ends well from here, in the weights of the straight one, and every sample is accounted for."""
    statuses = [agent.wait(90) for agent in training.agents]
    assert statuses == [0, 0], (statuses, training.said)
    same_end(straight, training.run)
    verified = command("python", "-m", "pipeline", "verify", "--run_dir", training.run)
    assert verified.status == 0, verified.text


def restarts(training: Job) -> int:
    return len(RunDir(str(training.run)).attempts()) - 1


@pytest.mark.timeout(180)
def test_a_rank_that_is_killed_is_started_again_in_place(straight: Path, tmp_path: Path) -> None:
    with job(tmp_path, *SHORT, join=30) as training:
        training.until_step(25)
        os.kill(training.rank(1), signal.SIGKILL)
        ended_like(straight, training)
        assert restarts(training) == 1
        assert "ended with SIGKILL" in training.said
        assert "Traceback" not in training.said, "nobody raised anything"


@pytest.mark.timeout(180)
def test_an_exception_on_one_rank_is_reported_once_with_its_traceback_and_restarted_within_the_budget(
    tmp_path: Path,
) -> None:
    with job(tmp_path, *SHORT, "--model=tests.cases.FailsOnOneRank", join=30) as training:
        assert [agent.wait(90) for agent in training.agents] == [1, 1], training.said
        assert restarts(training) == 2, "as often as the budget allows"
        said = training.said
        assert said.count("ZeroDivisionError: the model is broken on rank 1\n") == 3, "once for each attempt"
        assert said.count("Traceback (most recent call last)") == 3, said
        assert "Connection closed by peer" not in said, "an echo of it on the other rank"
        assert "restart 1 of 2" in training.log(0).read_text()
        attempt = RunDir(str(training.run)).read_json(RunDir.attempt(3))
        assert attempt is not None
        assert attempt["status"] == 1


@pytest.mark.timeout(180)
def test_a_rank_that_stands_still_is_noticed_and_all_are_started_again(straight: Path, tmp_path: Path) -> None:
    with job(tmp_path, *SHORT, "--collective_timeout=5", "--grace=8", join=30) as training:
        training.until_step(25)
        stopped = training.rank(1)
        os.kill(stopped, signal.SIGSTOP)
        began = time.monotonic()
        while restarts(training) == 0:
            assert time.monotonic() - began < 60, training.said
            time.sleep(0.1)
        ended_like(straight, training)
        assert not Path(f"/proc/{stopped}").exists()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("node", [0, 1])
def test_an_agent_that_is_killed_and_replaced_meets_the_others_again(straight: Path, tmp_path: Path, node: int) -> None:
    with job(tmp_path, *SHORT, join=60) as training:
        training.until_step(25)
        training.agents[node].kill()
        training.agents[node].wait(10)
        training.agents[node] = training.start(node)
        ended_like(straight, training)
        assert restarts(training) == 1


@pytest.mark.timeout(180)
def test_an_agent_that_is_asked_to_end_and_replaced_repeats_no_step(straight: Path, tmp_path: Path) -> None:
    with job(tmp_path, *SHORT, join=60) as training:
        training.until_step(25)
        training.agents[1].send_signal(signal.SIGTERM)
        assert training.agents[1].wait(30) == 75
        training.agents[1] = training.start(1)
        ended_like(straight, training)
        assert restarts(training) == 1
        for rank in (0, 1):
            steps = training.steps(rank)
            assert len(steps) == len(set(steps)), "none was done twice"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("node", [0, 1])
def test_with_a_node_killed_for_good_the_other_goes_on(tmp_path: Path, node: int) -> None:
    batches = ("--data.batch_size=null", "--data.global_batch_size=8")
    with job(tmp_path, *SHORT, *batches, nnodes="1:2", join=60) as training:
        training.until_step(25)
        training.agents[node].kill()
        assert training.agents[1 - node].wait(90) == 0, training.said
        verified = command("python", "-m", "pipeline", "verify", "--run_dir", training.run)
        assert verified.status == 0, verified.text
        assert "every sample is accounted for" in verified.out
