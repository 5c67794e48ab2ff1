"""Which run of MLflow or Weights & Biases belongs to a run is noted at its first use, and kept."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from jsonargparse import Namespace

from pipeline.run.run_dir import RunDir
from pipeline.training.logs.trackers import LOGGERS, chosen_ids, known_ids, log_to_trackers, note_ids, set_ids

WANDB, MLFLOW = "lightning.pytorch.loggers.WandbLogger", "lightning.pytorch.loggers.MLFlowLogger"


def entry(path: str, **arguments: Any) -> Namespace:
    return Namespace(class_path=path, init_args=Namespace(**arguments))


class WandbLogger:
    version = "w1"


class MLFlowLogger:
    run_id = "m1"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path))


@pytest.mark.parametrize("loggers", [None, True, False, [], entry("lightning.pytorch.loggers.CSVLogger")])
def test_other_loggers_have_no_ids(run: RunDir, loggers: Any) -> None:
    assert chosen_ids(run, loggers) == []
    note_ids(run, loggers, [])
    assert run.read(LOGGERS) is None


def test_an_id_is_chosen_for_one_and_taken_from_the_other_and_both_are_kept(run: RunDir) -> None:
    first = [entry(WANDB, id=None), entry(MLFLOW, run_id=None)]
    ((path, chosen),) = chosen_ids(run, first)
    assert path == WANDB
    set_ids(first, [[path, chosen]])
    assert (first[0].init_args.id, first[1].init_args.run_id) == (chosen, None)
    kept = WandbLogger()
    kept.version = chosen
    note_ids(run, first, [kept, MLFlowLogger()])
    again = [entry(MLFLOW, run_id=None), entry(WANDB, id=None)]
    set_ids(again, chosen_ids(run, again))
    assert (again[1].init_args.id, again[0].init_args.run_id) == (chosen, "m1")


def test_an_id_of_the_users_own_wins(run: RunDir) -> None:
    run.write_json(LOGGERS, {"loggers": [{"class_path": WANDB, "id": "known"}]})
    for given in ({"id": "mine"}, {"id": None, "version": "mine"}):
        asked = entry(WANDB, **given)
        set_ids(asked, chosen_ids(run, asked))
        assert vars(asked.init_args) == given


def test_two_of_a_class_are_told_apart_by_their_order(run: RunDir) -> None:
    run.write_json(LOGGERS, {"loggers": [{"class_path": WANDB, "id": "a"}, {"class_path": WANDB, "id": "b"}]})
    asked = [entry(WANDB, id=None), entry(WANDB, id=None)]
    set_ids(asked, chosen_ids(run, asked))
    assert [each.init_args.id for each in asked] == ["a", "b"]


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"schema": 1, "loggers": 5}', b'{"schema": 1, "loggers": [1, {}]}'])
def test_a_damaged_note_knows_nothing(run: RunDir, data: bytes) -> None:
    run.write(LOGGERS, data)
    assert known_ids(run) == []


def test_the_metrics_of_a_test_go_to_the_run_that_the_training_logged_to(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Any] = []

    class MLFlowLogger:
        def __init__(self, **arguments: Any) -> None:
            calls.append(arguments)
            self.experiment = SimpleNamespace()

        def log_metrics(self, metrics: Any, step: int) -> None:
            calls.append((metrics, step))

        def finalize(self, status: str) -> None:
            calls.append(status)

    module = ModuleType("trackers_of_a_test")
    module.MLFlowLogger = MLFlowLogger  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = f"{module.__name__}.MLFlowLogger"
    run.write_json(LOGGERS, {"loggers": [{"class_path": path, "id": "m1"}]})
    saved = {"class_path": path, "init_args": {"experiment_name": "x", "run_id": None}}
    log_to_trackers(run, saved, {"test_loss": 0.5, "nan": None}, 7)
    assert calls == [{"experiment_name": "x", "run_id": "m1"}, ({"test_loss": 0.5}, 7), "success"]
    run.write_json(LOGGERS, {"loggers": [{"class_path": "no.such.MLFlowLogger", "id": "m1"}]})
    log_to_trackers(run, {"class_path": "no.such.MLFlowLogger"}, {"test_loss": 0.5}, 7)
    assert "the test metrics are not logged by MLFlowLogger: ModuleNotFoundError" in caplog.text
