"""Each fit leaves what became of it, and is refused while another launch writes to its run."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint.commit import newest, write_record
from pipeline.process.topology import Topology
from pipeline.run.attempts import AttemptLog, reported_commits
from pipeline.run.lease import Lease, launch_id
from pipeline.run.run_dir import LEASE, NEWEST, RunDir
from tests.support.commands import Ended, torchrun
from tests.support.runs import attempt, fit, leave

App = Callable[..., Ended]


def test_the_launch_is_the_app_else_the_rendezvous_else_this_process() -> None:
    both = {"TORCHX_JOB_ID": "slurm://torchx/17", "TORCHELASTIC_RUN_ID": "17"}
    assert launch_id(both) == "slurm://torchx/17"
    assert launch_id({"TORCHELASTIC_RUN_ID": "17"}) == "17"
    for nothing in ({}, {"TORCHELASTIC_RUN_ID": "none"}):  # torchrun's default
        assert launch_id(nothing) == f"{os.uname().nodename}:{os.getpid()}"


def test_other_ranks_hold_nothing_and_write_nothing(tmp_path: Path) -> None:
    with AttemptLog() as writer:
        writer.begin(0)
        writer.held()
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_says_when_it_trained_from_where_to_where_and_how_it_ended(app: App, storage: str) -> None:
    assert fit(app, storage, 1).status == 0
    assert fit(app, storage, 2).status == 0
    first, second = attempt(storage, 1), attempt(storage, 2)
    for number, value in ((1, first), (2, second)):
        assert (value["attempt"], value["status"], value["reason"], value["world_size"]) == (number, 0, "done", 1)
        assert value["started"] < value["ended"]
        assert value["started"].endswith("Z")
        assert value["host"] == os.uname().nodename
    assert (first["first_step"], first["last_step"]) == (0, 7)
    assert (second["first_step"], second["last_step"]) == (7, 14)
    assert RunDir(storage).read(LEASE) is None, "it is released"
    # A finished run has nothing to train: a leftover of its last writer does not matter.
    leave(storage, seconds=0)
    assert "nothing to train" in fit(app, storage, 2).err
    third = attempt(storage, max(RunDir(storage).attempts()))
    assert (third["status"], third["reason"], third["first_step"], third["last_step"]) == (0, "nothing to do", None, 14)
    assert RunDir(storage).read(LEASE) is None


def test_a_start_that_fails_is_an_attempt_too(app: App, tmp_path: Path) -> None:
    url = str(tmp_path)
    assert fit(app, url, 1).status == 0
    assert fit(app, url, 2, "--seed_everything=5").status == 2
    value = attempt(url, 2)
    assert (value["status"], value["first_step"], value["last_step"]) == (2, None, 7)
    assert "seed" in value["reason"]


def test_a_run_whose_last_step_was_saved_before_its_end_is_finished_all_the_same(app: App, tmp_path: Path) -> None:
    url = str(tmp_path)
    # The last batch of the epoch is left out, so that nothing is left to save at the end.
    more = ("--model=tests.support.models.SkipsTheRest", "--checkpoints.every_n_steps=1")
    assert fit(app, url, 1, *more).status == 0
    record = newest(RunDir(url))
    assert record is not None
    assert record.reason == ["steps", "end"]
    # As it was where the save was still under way at the end.
    assert write_record(RunDir(url), replace(record, reason=["steps"]), overwrite=True)
    assert "nothing to train" in fit(app, url, 1, *more).err
    assert "nothing to train" in fit(app, url, 1, *more).err
    assert "resumed at step" in fit(app, url, 2, *more).err


def test_an_attempt_says_that_the_user_must_change_something_or_that_it_crashed(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path)
    assert fit(app, url, 1, "--checkpoints.monitor=val_los").status == 2
    value = attempt(url, 1)
    assert (value["status"], value["last_step"]) == (2, 7)
    assert value["reason"].startswith("user must change: checkpoints.monitor='val_los' is not logged")

    def burst(*_: Any, **__: Any) -> None:
        raise RuntimeError("burst")

    with monkeypatch.context() as patched:
        patched.setattr("tests.support.models.Regression.training_step", burst)
        with pytest.raises(RuntimeError, match="burst"):
            fit(app, url, 2)
    value = attempt(url, 2)
    assert (value["status"], value["reason"], value["first_step"]) == (1, "crash: RuntimeError: burst", 7)
    assert RunDir(url).read(LEASE) is None, "it is released all the same"


def test_an_attempt_that_is_killed_has_said_what_it_committed_first(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    writer = AttemptLog()
    writer.take(run, Topology.from_environment({}))
    assert reported_commits(run) == {}
    writer.begin(3)
    for step in (5, 6):
        writer.committed(step)
    assert attempt(str(tmp_path), 1)["committed_step"] == 5, "at once; later ones with the lease"
    assert reported_commits(run) == {3: 1, 5: 1}
    lease = run.read_json(LEASE)
    assert lease is not None
    with AttemptLog() as following:
        following.take(run, Topology.from_environment({}))
        assert attempt(str(tmp_path), 1)["committed_step"] == 5
    writer.__exit__(None, None, None)


def test_the_newest_attempt_says_what_all_of_the_run_has_committed_and_what_it_was_asked_for(tmp_path: Path) -> None:
    run, here = RunDir(str(tmp_path)), Topology.from_environment({})
    first = AttemptLog()
    first.take(run, here, {"model": {"class_path": "m.Model", "init_args": {"learning_rate": 0.1}}})
    best = {"name": "val_loss", "value": 0.25, "mode": "min"}
    first.committed(1, 0, best)
    first.committed(2, 1, {**best, "value": 0.5})
    assert attempt(str(tmp_path), 1)["config"] == {"model.class_path": "m.Model", "model.learning_rate": 0.1}
    assert attempt(str(tmp_path), 1)["commits"]["through"] == 1, "at once; later ones with the lease"
    first.held()  # renews the lease; then it is killed
    with AttemptLog() as following:
        following.take(run, here)
        assert attempt(str(tmp_path), 1)["commits"]["through"] == 2, "as the lease has told"
        value = attempt(str(tmp_path), 2)
        assert value["commits"] == {"through": 2, "epoch": 1, "best": {**best, "step": 1}}
        assert value["earlier"]["started"] == attempt(str(tmp_path), 1)["started"]
        following.committed(3, 2, {**best, "value": 0.125})
    assert attempt(str(tmp_path), 2)["commits"] == {
        "through": 3,
        "epoch": 2,
        "best": {**best, "value": 0.125, "step": 3},
    }
    first.__exit__(None, None, None)


def test_the_newest_record_lies_under_one_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, here = RunDir(str(tmp_path)), Topology.from_environment({})
    written: list[str] = []
    real = RunDir.write_json

    def write_json(self: RunDir, name: str, value: dict[str, Any]) -> None:
        written.append(name)
        real(self, name, value)

    monkeypatch.setattr(RunDir, "write_json", write_json)
    with AttemptLog() as writer:
        writer.take(run, here)
        assert written == [NEWEST, "attempts/0001.json"], "whoever reads the first alone sees a run that goes on"
        assert run.read_json(NEWEST) == attempt(str(tmp_path), 1)
        writer.begin(0)
        written.clear()
    assert written == ["attempts/0001.json", NEWEST], "and one that has ended once that is written"
    assert run.read_json(NEWEST) == attempt(str(tmp_path), 1)
    assert attempt(str(tmp_path), 1)["stored"] == {"checkpoints": 0, "bytes": 0}


def test_a_writer_that_has_lost_its_lease_leaves_the_newest_record_alone(tmp_path: Path) -> None:
    run, here = RunDir(str(tmp_path)), Topology.from_environment({})
    stale = AttemptLog()
    stale.take(run, here)
    with AttemptLog() as following:  # of the same launch, which takes over at once
        following.take(run, here)
        stale.__exit__(None, None, None)
        assert (run.read_json(NEWEST) or {})["attempt"] == 2
        assert attempt(str(tmp_path), 1)["ended"] is not None


def test_a_state_in_memory_from_which_an_attempt_has_resumed_is_no_commit(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path / "run"))
    run.write_json(RunDir.attempt(1), {"first_step": 7, "resumed_from": "memory", "committed_step": None})
    assert reported_commits(run) == {}
    run.write_json(RunDir.attempt(2), {"first_step": 9, "resumed_from": "memory", "committed_step": 10})
    run.write_json(RunDir.attempt(3), {"first_step": 10, "resumed_from": "storage"})
    assert reported_commits(run) == {10: 3}


def test_what_is_killed_leaves_an_attempt_without_an_end(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    writer = AttemptLog()
    writer.take(run, Topology.from_environment({}))
    value = attempt(str(tmp_path), 1)
    assert (value["first_step"], value["ended"]) == (None, None), "written at once"
    writer.begin(3)
    value = attempt(str(tmp_path), 1)
    assert (value["first_step"], value["ended"], value["status"]) == (3, None, None)
    writer.__exit__(None, None, None)


@pytest.fixture
def other(storage: str) -> Iterator[str]:
    """A run that another launch writes, of which this process is the one that is alive."""
    lease = Lease.take(RunDir(storage), "other")
    yield storage
    lease.release()


def test_a_second_launch_is_refused_before_it_has_written_anything(app: App, other: str) -> None:
    ended = fit(app, other, 1)
    assert ended.status == 2
    said = r"has a writer already, launch 'other' \(attempt 1, process \d+ on .*, renewed \d+ s ago\)"
    assert re.search(said, ended.err), ended.err
    assert "Traceback" not in ended.text
    run = RunDir(other)
    assert [name.rsplit("/", 1)[-1] for name in run.fs.find(run.path)] == [LEASE]
    # A try writes nothing, so it needs no lease.
    assert fit(app, other, 1, "--trainer.fast_dev_run=true").status == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("storage", ["folder"], indirect=True)
def test_all_ranks_are_refused_together(other: str) -> None:
    config = ("--config", "pipeline/configs/digits.yaml", "--trainer.max_epochs=1")
    ended = torchrun(2, "-m", "pipeline", "fit", *config, "--run_dir", other)
    assert ended.status != 0
    assert ended.err.count("has a writer already, launch 'other'") == 1
    assert ended.err.count("exitcode  : 2") >= 1
