"""TorchX's commands on a Slurm of scripts; tests/slurm has a real one."""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from torchx.runner import get_runner
from torchx.schedulers.api import Stream
from torchx.specs import AppDef, AppState, Role

from components import slurm
from components.evaluate import evaluate
from components.launch import main
from components.slurm import Slurm, create_scheduler
from components.train import train
from pipeline.errors import UserError
from tests.support.fake_slurm import JOB, FakeSlurm


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.setattr(slurm, "_FRESH", 0.0)
    monkeypatch.setattr(slurm, "_POLL", 0.01)
    commands = FakeSlurm(tmp_path, monkeypatch)
    commands.answers("sbatch", "7\n")
    commands.answers("scontrol", JOB)
    return commands


def submitted(app: AppDef | None = None, **cfg: Any) -> Slurm:
    scheduler = create_scheduler("test")
    assert scheduler.submit(app or train(run_dir="/shared/run", nodes="2"), cfg) == "7"
    return scheduler


def folder_of(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "state/pipeline/slurm/jobs").iterdir()
    return folder


def ended(fake: FakeSlurm) -> None:
    fake.answers("scontrol", "", err="slurm_load_jobs error: Invalid job id specified\n", status=1)
    fake.answers("sacct", "", err="Slurm accounting storage is disabled\n", status=1)


def test_it_replaces_torchxs_own() -> None:
    with get_runner() as runner:
        assert isinstance(runner._scheduler("slurm"), Slurm)


def test_a_job_has_a_folder_of_its_own_and_the_python_of_its_submitter(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERE", str(tmp_path))
    fake.answers("sbatch", "", script='echo "7;cluster"; echo "$PATH" >"$HERE/path"')
    scheduler = submitted()
    folder = folder_of(tmp_path)
    assert folder.name.startswith("train-")
    assert (folder / "id").read_text() == "7"
    assert (tmp_path / "path").read_text().split(os.pathsep)[0] == os.path.dirname(sys.executable)
    assert str(folder / "task.sh") in (folder / "job.sh").read_text()
    described = scheduler.describe("7")
    assert described is not None
    assert (described.state, described.roles[0].num_replicas) == (AppState.RUNNING, 2)


def test_a_job_submitted_within_an_allocation_knows_nothing_of_that_one(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERE", str(tmp_path))
    fake.answers("sbatch", "", script='echo 7; env | grep ^SLURM_ >"$HERE/known"')
    for name in ("SLURM_CONF", "SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SLURM_NTASKS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.setenv(name, "3")
    submitted()
    assert (tmp_path / "known").read_text() == "SLURM_CONF=3\n"


def test_what_is_asked_for_takes_precedence_over_variables_of_sbatch(fake: FakeSlurm, tmp_path: Path) -> None:
    # sbatch prefers them to the options in a script, and options of its command line to them.
    submitted(partition="gpu", comment="it's mine")
    (call,) = [call for call in fake.calls if call.startswith("sbatch")]
    assert " --partition=gpu --comment=it's mine " in call
    assert call.endswith(str(folder_of(tmp_path) / "job.sh"))


def test_a_job_that_slurm_refuses_leaves_nothing(fake: FakeSlurm, tmp_path: Path) -> None:
    fake.answers("sbatch", "", err="sbatch: error: invalid partition specified: nope\n", status=1)
    with pytest.raises(UserError, match=r"Slurm refuses the job \(partition\): invalid partition"):
        submitted(partition="nope")
    assert not list((tmp_path / "state/pipeline/slurm/jobs").iterdir())


def test_a_job_of_a_name_is_found_by_it_and_never_doubled(fake: FakeSlurm, tmp_path: Path) -> None:
    scheduler = submitted(app_id="fox-train", log_dir=str(tmp_path / "logs"))
    assert next((tmp_path / "logs").iterdir()).name.startswith("fox-train-")
    described = scheduler.describe("fox-train")
    assert described is not None
    assert described.state == AppState.RUNNING
    with pytest.raises(UserError, match="a job 'fox-train' exists already"):
        submitted(app_id="fox-train")


@pytest.mark.parametrize("name", ["a b", "../x", ""])
def test_a_name_is_one_that_folders_can_have(fake: FakeSlurm, name: str) -> None:
    if name:
        with pytest.raises(UserError, match="must be a name of letters"):
            submitted(app_id=name)
    else:
        assert submitted(app_id=name)


def test_a_job_that_slurm_has_forgotten_keeps_its_status(fake: FakeSlurm, tmp_path: Path) -> None:
    scheduler = submitted()
    (folder_of(tmp_path) / "state").write_text("start=2\ncrashes=0\nstatus=2\nnode=0\ncancelled=\n")
    ended(fake)
    described = scheduler.describe("7")
    assert described is not None
    assert (described.state, described.num_restarts) == (AppState.FAILED, 1)
    assert json.loads(described.structured_error_msg)["message"]["errorCode"] == 2
    assert scheduler.describe("99") is None
    fake.answers("squeue", "9 RUNNING\n")
    assert [(one.app_id, one.state) for one in scheduler.list()] == [("7", AppState.FAILED)]


def test_a_log_goes_on_over_all_starts_of_a_node(fake: FakeSlurm, tmp_path: Path) -> None:
    scheduler = submitted()
    folder = folder_of(tmp_path)
    for start, text in {1: "one\ntwo", 2: "three\n", 10: "four\n"}.items():
        (folder / f"train-1.{start}.log").write_text(text)
    assert list(scheduler.log_iter("7", "train", 1)) == ["one\n", "two\n", "three\n", "four\n"]
    assert list(scheduler.log_iter("7", "train", 1, regex="^t")) == ["two\n", "three\n"]
    assert list(scheduler.log_iter("7", "train", 0)) == []
    with pytest.raises(ValueError, match="must be combined"):
        scheduler.log_iter("7", "train", streams=Stream.STDERR)
    with pytest.raises(UserError, match="the log of job 99 is not here"):
        scheduler.log_iter("99", "train")


def test_a_log_is_followed_to_the_end_of_the_job(fake: FakeSlurm, tmp_path: Path) -> None:
    scheduler = submitted()
    folder, read = folder_of(tmp_path), list[str]()
    thread = threading.Thread(
        target=lambda: [read.append(line) for line in scheduler.log_iter("7", "train", 0, should_tail=True)]
    )
    thread.start()
    first = folder / "train-0.1.log"
    for text in ("one\n", "tw", "o\n"):
        with first.open("a") as log:
            log.write(text)
        time.sleep(0.05)
    deadline = time.monotonic() + 20
    while read != ["one\n", "two\n"]:
        assert time.monotonic() < deadline, read
        time.sleep(0.01)
    (folder / "train-0.2.log").write_text("three\n")
    (folder / "state").write_text("status=0\n")
    ended(fake)
    thread.join(60)
    assert read == ["one\n", "two\n", "three\n"]


@pytest.mark.parametrize(("state", "call"), [("RUNNING", "scancel --batch --signal=USR2 7"), ("PENDING", "scancel 7")])
def test_a_cancelled_job_saves_first_where_it_runs(fake: FakeSlurm, tmp_path: Path, state: str, call: str) -> None:
    scheduler = submitted()
    fake.answers("scontrol", JOB.replace("RUNNING", state))
    scheduler.cancel("7")
    assert call in fake.calls
    assert (folder_of(tmp_path) / "cancelled").exists()


def test_the_evaluation_of_a_detached_run_waits_for_its_training(
    fake: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answers("sbatch", "", script='echo "sbatch $*" >>"$CALLS"; grep -c "^sbatch" "$CALLS"')
    assert main(["-s", "slurm", "--detach", "--name", "fox", "--nodes", "2", "--run_dir", "/shared/run"]) == 0
    told = capsys.readouterr()
    for number in (1, 2):
        assert f"submitted fox: python -m components.jobs {{status,logs,cancel}} slurm://torchx/{number}" in told.out
    jobs = {path.name.rpartition("-")[0]: path for path in (tmp_path / "state/pipeline/slurm/jobs").iterdir()}
    assert jobs.keys() == {"fox-train", "fox-evaluate"}
    assert "--dependency" not in (jobs["fox-train"] / "job.sh").read_text()
    assert "#SBATCH --dependency=afterok:1\n" in (jobs["fox-evaluate"] / "job.sh").read_text()
    assert "#SBATCH --kill-on-invalid-dep=yes\n" in (jobs["fox-evaluate"] / "job.sh").read_text()


def test_a_training_whose_evaluation_slurm_refuses_is_taken_back(fake: FakeSlurm) -> None:
    fake.answers("sbatch", "", script='echo "sbatch $*" >>"$CALLS"; [ "$(grep -c ^sbatch "$CALLS")" = 1 ] && echo 7')
    fake.answers("scontrol", JOB.replace("RUNNING", "PENDING"))
    assert main(["-s", "slurm", "--detach", "--run_dir", "/shared/run"]) == 2
    assert "scancel 7" in fake.calls


def test_flags_of_sbatch_are_no_options_of_ours(fake: FakeSlurm, tmp_path: Path) -> None:
    options = "qos=high,sbatch_args=--switches=1 --licenses=x,time=1-0"
    assert main(["-s", "slurm", "--detach", "--run_dir", "/shared/run", "--scheduler_args", options]) == 0
    for folder in (tmp_path / "state/pipeline/slurm/jobs").iterdir():
        script = (folder / "job.sh").read_text()
        assert "#SBATCH --switches=1 --licenses=x\n" in script
        assert "#SBATCH --qos=high\n" in script
        assert "#SBATCH --time=1-0\n" in script


def test_a_run_directory_within_a_container_is_refused_there_only(
    fake: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-s", "slurm", "--detach", "--run_dir", "/shared/run", "--scheduler_args"]
    assert main([*arguments, "container=pyxis"]) == 2
    assert "run_dir='/shared/run' is a folder within each container" in capsys.readouterr().err
    assert main([*arguments, "container=none"]) == 0


def test_a_secret_must_be_set_here(fake: FakeSlurm) -> None:
    with pytest.raises(UserError, match="secrets=NOT_SET: this variable is not set here"):
        submitted(evaluate(run_dir="/shared/run", secrets=["NOT_SET"]))


def test_two_roles_are_more_than_a_job_has(fake: FakeSlurm) -> None:
    with pytest.raises(UserError, match="one role, not 2"):
        submitted(AppDef("both", [Role("a", image="", entrypoint="a"), Role("b", image="", entrypoint="b")]))


def test_a_workspace_is_copied_to_a_new_folder_that_the_job_runs_in(fake: FakeSlurm, tmp_path: Path) -> None:
    code, copy = tmp_path / "code", tmp_path / "copy"
    code.mkdir()
    (code / "own.py").write_text("")
    scheduler = create_scheduler("test")
    app = train(run_dir="/shared/run", image="one:1")
    assert scheduler.submit(app, {"job_dir": str(copy)}, workspace=f"file://{code}") == "7"
    assert (copy / "own.py").exists()
    assert f"#SBATCH --chdir={copy}\n" in (folder_of(tmp_path) / "job.sh").read_text()
    assert app.roles[0].image == "one:1"
    with pytest.raises(UserError, match="exists: it must be a new folder"):
        scheduler.submit(app, {"job_dir": str(copy)}, workspace=f"file://{code}")
