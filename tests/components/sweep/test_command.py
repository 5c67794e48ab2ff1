"""The command: its mistakes in one message, and whole sweeps by real trainings."""

import json
import re
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.sweep.command import main
from pipeline.run.run_dir import RunDir
from tests.support.commands import DIGITS, ROOT, assert_one_message, command, heeding_ctrl_c
from tests.support.launched import Launched, killed_in_the_end

SWEEP = (sys.executable, "-m", "components.sweep")
LR = ("--grid", "model.learning_rate=0.01,0.003,0.001")
QUICK = (
    *("--", "--trainer.max_epochs=1", "--trainer.limit_train_batches=5", "--checkpoints.every_n_epochs=1"),
    "--trainer.enable_model_summary=false",
)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """TorchX installs handlers of its own."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*LR], "--run_dir"),
        (["--run_dir", "r"], "nothing to try"),
        (["--run_dir", "r", "--grid", "a"], "grid='a': expected key=..."),
        (["--run_dir", "r", *LR, "--trials", "2"], "trials=2: the grid has 3"),
        (["--run_dir", "r", "--grid", "a=1", "--nodes", "many"], "nodes='many'"),
        (["--run_dir", "r", "--grid", "a=1", "--parallel", "0"], "parallel=0 must be >= 1"),
        (["--run_dir", "r", "--grid", "a=1", "--", "--a=2"], "a is also a flag after --"),
        (["--run_dir", "r", "--grid", "run_dir=x,y"], "run_dir is the sweep's own: give --run_dir"),
        (["--run_dir", "r", "--grid", "checkpoints.monitor=x,y"], "give --metric"),
        (["--run_dir", "r", "--grid", "a=1", "--pruner", "median"], "it needs --optuna"),
        (["--run_dir", "r", "--grid", "a=1", "--pruner", "median2"], "--pruner"),
        (["--run_dir", "r", "--grid", "a=1", "--trainer.max_epochs=1"], "the app's own flags go after --"),
        (["--run_dir", "r", "--grid", "a=1", "--config", "missing.yaml"], "config='missing.yaml' does not exist"),
        (["--run_dir", "r", "--grid", "a=1", "-s", "nowhere"], "scheduler='nowhere' must be one of"),
        (["--run_dir", "s3://b/r", "--grid", "a=1", "-s", "slurm"], "parallel: say by --parallel how many"),
        (["--run_dir", "r", "--grid", "a=1", "-s", "local_docker"], "is a folder within each container"),
        (["--run_dir", "memory://x", "--grid", "a=1"], "lives within one process"),
    ],
)
def test_a_mistake_is_one_message_with_status_2_and_leaves_nothing(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_all_mistakes_are_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    bad = ["--grid", "a=1,1", "config=x", "--random", "b=log:0:1", "--pruner", "median"]
    assert main(["--run_dir", "r", *bad]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 5


@pytest.mark.timeout(120)
def test_keys_and_values_that_fit_refuses_are_said_before_anything_is_launched(tmp_path: Path) -> None:
    where = ("--run_dir", tmp_path / "s")
    unknown = command(*SWEEP, *where, "--grid", "model.learning_rat=0.1,0.01")
    assert_one_message(unknown, "'learning_rat' is not accepted; did you mean 'learning_rate'?")
    last = command(*SWEEP, *where, "--grid", "model.learning_rate=0.1,0.01,fast")
    assert_one_message(last, "fast")
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_sweep_that_is_killed_goes_on_and_repeats_no_finished_trial(tmp_path: Path) -> None:
    url = tmp_path / "sweep"
    arguments = (*SWEEP, "--run_dir", url, *LR, "--parallel", "1", "--cpu", "1", *QUICK)
    with killed_in_the_end(Launched(tmp_path / "log", *arguments)) as launched:
        launched.until((url / "0002" / "lease.json").exists)
        twice = command(*arguments)
        assert_one_message(twice, "another sweep runs here")
        launched.process.kill()
    ended = command(*arguments, timeout=300)
    assert ended.status == 0, ended.text
    trials = [json.loads(path.read_text()) for path in sorted((url / "trials").iterdir())]
    assert [each["state"] for each in trials] == ["finished"] * 3
    assert len(RunDir(str(url / "0001")).attempts()) == 1
    assert trials[0]["starts"] == 1
    rows = [line.split() for line in ended.out.splitlines() if re.match(r"000\d +finished", line)]
    values = [float(row[2]) for row in rows]
    assert len(rows) == 3
    assert values == sorted(values)
    assert f"best val_loss  {values[0]:g}: model.learning_rate={rows[0][3]}" in ended.out
    assert f"run directory  {url}/{rows[0][0]}" in ended.out
    assert "test_loss  " in ended.out
    assert [(url / row[0] / "evaluation").exists() for row in rows] == [True, False, False]

    listed = command(sys.executable, "-m", "pipeline", "runs", url, "--sort", "metric").out.splitlines()
    assert "learning_rate" in listed[0]
    assert [line.split()[0] for line in listed[1:]] == [row[0] for row in rows]
    page = (url / "report.html").read_text()
    assert all(word in page for word in ("Comparison", "model.learning_rate", "0001", "0002", "0003", "val_loss"))

    different = command(*SWEEP, "--run_dir", url, "--grid", "model.learning_rate=0.01,0.1", *QUICK)
    assert different.status == 2
    assert "holds another sweep" in different.err
    assert "grid.model.learning_rate: ['0.01', '0.003', '0.001'] before, ['0.01', '0.1'] now" in different.err


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_optuna_sweeps_on_s3_with_another_metric_and_more_trials_later(s3: str) -> None:
    url = f"{s3}/{uuid.uuid4().hex[:12]}/tpe"
    own = ("--optuna", "model.learning_rate=log:1e-3:1e-1", "--pruner", "median", "--metric", "train_loss")
    arguments = (*SWEEP, "--run_dir", url, "--parallel", "2", "--cpu", "1", "--evaluate", "none")
    twenty = [each.replace("batches=5", "batches=20") for each in QUICK]
    first = command(*arguments, *own, "--trials", "2", *twenty, timeout=180)
    assert first.status == 0, first.text
    more = command(*arguments, *own, "--trials", "3", *twenty, timeout=180)
    assert more.status == 0, more.text
    assert "0003: started: model.learning_rate=" in more.out
    assert "0001: started" not in more.out
    run = RunDir(f"{url}/0003")
    assert run.attempts() == [1]
    trial = RunDir(url).read_json("trials/0003.json")
    assert trial is not None
    assert isinstance(trial["value"], float)
    assert len(trial["reported"]) == 2, "logged after every tenth step"
    record = run.read_json(RunDir.record(20))
    assert record is not None
    assert record["monitor"]["name"] == "train_loss", "the checkpoints follow the sweep's metric"
    assert RunDir(url).read("report.html")


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_stops_all_trials_which_save(tmp_path: Path, number: signal.Signals, status: int) -> None:
    url = tmp_path / "sweep"
    long = ("--", "--trainer.max_epochs=100000", "--checkpoints.every_n_epochs=20")
    arguments = (*SWEEP, "--run_dir", url, *LR, "--parallel", "2", "--cpu", "1", *long)
    with heeding_ctrl_c(), killed_in_the_end(Launched(tmp_path / "log", *arguments)) as launched:
        both = [url / name / "checkpoints" for name in ("0001", "0002")]
        launched.until(lambda: all(list(each.glob("*.json")) for each in both))
        launched.process.send_signal(number)
        assert launched.status(60) == status, launched.output
    assert "sweep: stopped; the same command continues it" in launched.output
    for name in ("0001", "0002"):
        run = RunDir(str(url / name))
        record = run.read_json(RunDir.attempt(1))
        assert record is not None
        assert record["status"] == 75
        assert record["last_step"] == record["reached_step"] == max(run.steps()["json"]), "saved where it stopped"
        assert not (url / name / "lease.json").exists()


def of_docs(language: str, word: str) -> str:
    """The block of the page on sweeps that has a word in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/sweeps.md").read_text(), re.DOTALL)
    return next(block for block in blocks if word in block)


HYDRA = """
# Hydra as far as the page uses it: multirun over the values between commas, and what a job is told.
import itertools, sys
from types import SimpleNamespace

jobs = []

def main(**_):
    def decorate(function):
        def run():
            sweep = next(a.partition("=")[2] for a in sys.argv if a.startswith("hydra.sweep.dir="))
            keys = [a.partition("=") for a in sys.argv if a.startswith("+")]
            for number, values in enumerate(itertools.product(*(k[2].split(",") for k in keys))):
                task = [f"{k[0]}={v}" for k, v in zip(keys, values)]
                jobs.append(SimpleNamespace(
                    overrides=SimpleNamespace(task=task), runtime=SimpleNamespace(output_dir=f"{sweep}/{number}")))
                function({})
        return run
    return decorate
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("by", ["hydra", "shell"])
def test_the_ways_of_other_programs_in_the_docs_leave_runs_that_are_compared(tmp_path: Path, by: str) -> None:
    quick = (ROOT / DIGITS).read_text().replace("max_epochs: 20", "max_epochs: 1\n  limit_train_batches: 3")
    (tmp_path / "quick.yaml").write_text(quick)
    if by == "hydra":
        core = tmp_path / "hydra" / "core"
        core.mkdir(parents=True)
        (tmp_path / "hydra" / "__init__.py").write_text(HYDRA)
        (core / "__init__.py").touch()
        (core / "hydra_config.py").write_text(
            "import hydra\n\n\nclass HydraConfig:\n    get = staticmethod(lambda: hydra.jobs[-1])\n"
        )
        script = of_docs("python", "hydra").replace("pipeline/configs/digits.yaml", "quick.yaml")
        (tmp_path / "hydra_fit.py").write_text(script)
        line = of_docs("sh", "hydra_fit.py")
    else:
        line = of_docs("sh", "for lr in").replace("pipeline/configs/digits.yaml", "quick.yaml")
    ended = command("sh", "-ec", line, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, timeout=180)
    assert ended.status == 0, ended.text
    (folder,) = (tmp_path / "runs").iterdir()
    listed = command(sys.executable, "-m", "pipeline", "runs", folder).out.splitlines()
    assert "learning_rate" in listed[0]
    assert {line.split()[1] for line in listed[1:]} == {"finished"}
    assert len(listed) == 3
