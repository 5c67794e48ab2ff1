"""A run logs to one run of MLflow's and of Weights & Biases', over attempts and stages; both are optional."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run.run_dir import LOGS, RunDir
from pipeline.training.logs.trackers import LOGGERS
from tests.support.commands import Ended, assert_one_message, command
from tests.support.runs import FIT, ROWS

App = Callable[..., Ended]
LOGGED = ("--trainer.log_every_n_steps=1",)


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: make test-integrations")


def started(*arguments: str, env: dict[str, str] | None = None) -> None:
    ended = command(sys.executable, "-m", "pipeline", *arguments, env=env)
    assert ended.status == 0, ended.text


def trained_twice_and_tested(run: str, *logger: str, env: dict[str, str] | None = None) -> None:
    for epochs in (1, 2):
        started("fit", *ROWS, "--run_dir", run, f"--trainer.max_epochs={epochs}", *LOGGED, *logger, env=env)
    started("test", "--run_dir", run, "--data.test=tests.support.models.Rows", env=env)


@pytest.mark.parametrize("name", ["MLFlowLogger", "WandbLogger"])
def test_a_tracker_that_is_not_installed_is_one_message_with_what_to_install(
    app: App, name: str, tmp_path: Path
) -> None:
    package = {"MLFlowLogger": "mlflow", "WandbLogger": "wandb"}[name]
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    asked = f"--trainer.logger=lightning.pytorch.loggers.{name}"
    assert_one_message(app(*FIT, "--run_dir", tmp_path / "run", asked), f"pip install -U '{package}")


def test_the_runs_own_logger_has_no_note_of_others(app: App, tmp_path: Path) -> None:
    run = RunDir(str(tmp_path / "run"))
    assert app(*FIT, "--run_dir", run.url).status == 0
    assert run.read(LOGGERS) is None
    assert any("tfevents" in name for name in run.names(LOGS))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_one_run_of_mlflow_over_two_attempts_and_a_test(storage: str, tmp_path: Path) -> None:
    needs("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db" if "://" in storage else f"file:{tmp_path}/mlruns"
    env = {"MLFLOW_ALLOW_FILE_STORE": "true"}
    trained_twice_and_tested(
        storage,
        *("--trainer.logger=lightning.pytorch.loggers.MLFlowLogger", "--trainer.logger.experiment_name=rows"),
        f"--trainer.logger.tracking_uri={uri}",
        env=env,
    )
    os.environ.update(env)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("rows")
    (found,) = client.search_runs([experiment.experiment_id])
    noted = RunDir(storage).read_json(LOGGERS)
    assert noted is not None
    assert noted["loggers"] == [
        {"class_path": "lightning.pytorch.loggers.MLFlowLogger", "id": found.info.run_id},
    ]
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "train_loss")] == list(range(14))
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "val_loss")] == [6, 13]
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "test_loss")] == [14]
    assert found.info.status == "FINISHED"
    assert found.info.run_id.encode() not in (RunDir(storage).read("fit.yaml") or b""), "a replay has a run of its own"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_one_run_of_weights_and_biases_offline_over_two_attempts_and_a_test(tmp_path: Path) -> None:
    needs("wandb")
    run = RunDir(str(tmp_path / "run"))
    trained_twice_and_tested(
        run.url,
        *("--trainer.logger=lightning.pytorch.loggers.WandbLogger", "--trainer.logger.offline=true"),
        *("--trainer.logger.project=rows", f"--trainer.logger.save_dir={tmp_path}"),
        env={"WANDB_MODE": "offline"},
    )
    noted = run.read_json(LOGGERS)
    assert noted is not None
    (known,) = (each["id"] for each in noted["loggers"])
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 3, "one for each process, to be synchronized"
    assert {folder.name.rpartition("-")[2] for folder in folders} == {known}


@pytest.mark.slow
def test_a_replay_of_the_configuration_elsewhere_logs_to_a_run_of_its_own(tmp_path: Path) -> None:
    needs("wandb")
    runs = [RunDir(str(tmp_path / name)) for name in ("one", "two")]
    logger = (
        *("--trainer.logger=lightning.pytorch.loggers.WandbLogger", "--trainer.logger.offline=true"),
        f"--trainer.logger.save_dir={tmp_path}",
    )
    started("fit", *ROWS, "--run_dir", runs[0].url, "--trainer.max_epochs=1", *logger)
    started("fit", "--config", f"{runs[0].url}/fit.yaml", "--run_dir", runs[1].url)
    ids = [run.read_json(LOGGERS) for run in runs]
    assert ids[0] is not None
    assert ids[1] is not None
    assert ids[0]["loggers"] != ids[1]["loggers"]
