"""The same command goes on from the newest durable checkpoint, on every storage."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.checkpoint.commit import newest
from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended
from tests.support.resumes import equal, state
from tests.support.runs import ROWS, fit, listing, logged

App = Callable[..., Ended]


def test_resumed_at_an_epochs_end_equals_straight(app: App, storage: str) -> None:
    straight, resumed = f"{storage}-straight", f"{storage}-resumed"
    assert fit(app, straight, 4).status == 0
    assert fit(app, resumed, 2).status == 0
    ended = fit(app, resumed, 4)
    assert "resumed at step 14 from" in ended.err
    left, right = state(straight), state(resumed)
    assert left["global_step"] == right["global_step"] == 28
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
        assert equal(left[part], right[part]), part


@pytest.mark.parametrize(
    "limits", [("max_epochs=2", "max_epochs=4"), ("max_steps=14", "max_steps=28"), ("max_epochs=2", "max_steps=28")]
)
@pytest.mark.parametrize(
    ("more", "lost"),
    [
        ((), False),
        ((), True),
        (("--trainer.check_val_every_n_epoch=2",), True),
        (("--data.num_workers=2",), True),
        pytest.param(("--trainer.check_val_every_n_epoch=2",), False, marks=pytest.mark.slow),
        pytest.param(("--data.num_workers=2",), False, marks=pytest.mark.slow),
    ],
)
def test_resumed_equals_straight_however_training_is_limited(
    app: App, tmp_path: Path, limits: tuple[str, str], more: tuple[str, ...], lost: bool
) -> None:
    straight, resumed = str(tmp_path / "straight"), str(tmp_path / "resumed")
    assert app("fit", *ROWS, *more, "--run_dir", straight, f"--trainer.{limits[1]}").status == 0
    assert app("fit", *ROWS, *more, "--run_dir", resumed, f"--trainer.{limits[0]}").status == 0
    if lost:  # go on from the save between two epochs, not from the one at the end of training
        (tmp_path / "resumed" / RunDir.checkpoint(14)).unlink()
        (tmp_path / "resumed" / RunDir.record(14)).unlink()
    assert app("fit", *ROWS, *more, "--run_dir", resumed, f"--trainer.{limits[1]}").status == 0
    left, right = state(straight), state(resumed)
    assert left["global_step"] == right["global_step"] == 28
    assert left["epoch"] == right["epoch"] == 4
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(left[part], right[part]), part


def test_a_second_and_third_resume_equal_straight_too(app: App, tmp_path: Path) -> None:
    straight, resumed = str(tmp_path / "straight"), str(tmp_path / "resumed")
    fit(app, straight, 4)
    for epochs in (1, 2, 3, 4):
        assert fit(app, resumed, epochs).status == 0
    assert equal(state(straight)["state_dict"], state(resumed)["state_dict"])


def test_each_epoch_sees_another_order_also_after_a_resume(app: App, tmp_path: Path) -> None:
    straight, resumed = str(tmp_path / "straight"), str(tmp_path / "resumed")
    # With a learning rate of zero only the order of the samples can tell the runs apart: by their logged losses.
    fit(app, straight, 3, "--trainer.log_every_n_steps=1", "--model.learning_rate=0")
    fit(app, resumed, 2, "--trainer.log_every_n_steps=1", "--model.learning_rate=0")
    fit(app, resumed, 3, "--trainer.log_every_n_steps=1", "--model.learning_rate=0")
    losses = list(logged(straight, "train_loss").values())
    assert losses == list(logged(resumed, "train_loss").values())
    assert len({tuple(losses[start : start + 7]) for start in (0, 7, 14)}) == 3


def test_a_finished_run_ends_with_0_says_so_and_rewrites_nothing(app: App, storage: str) -> None:
    assert fit(app, storage, 2).status == 0
    before = listing(storage)
    ended = fit(app, storage, 2)
    assert ended.status == 0
    assert "is done at step 14; nothing to train" in ended.err
    assert listing(storage) == before


def test_early_stopping_finishes_a_run_too(app: App, tmp_path: Path) -> None:
    stopping = (
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor=val_loss",
        "--trainer.callbacks.patience=1",
        "--model.learning_rate=0",
    )
    assert fit(app, str(tmp_path), 9, *stopping).status == 0
    record = newest(RunDir(str(tmp_path)))
    assert record is not None
    assert "end" in record.reason
    assert record.epoch == 2
    assert "nothing to train" in fit(app, str(tmp_path), 9, *stopping).err


def test_every_record_has_all_fields_and_the_truth_about_its_file(app: App, storage: str) -> None:
    fit(app, storage, 2, "--checkpoints.monitor=val_loss")
    import hashlib

    run = RunDir(storage)
    assert sorted(run.steps()["json"]) == sorted(run.steps()["ckpt"]) == [7, 14]
    for step, epoch, reason in ((7, 1, ["epoch"]), (14, 2, ["epoch", "end"])):
        record = run.read_json(RunDir.record(step))
        data = run.read(RunDir.checkpoint(step))
        assert record is not None
        assert data is not None
        assert record["bytes"] == len(data)
        assert record["sha256"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert (record["step"], record["epoch"], record["position"], record["world_size"]) == (step, epoch, 0, 1)
        assert record["reason"] == reason
        assert record["monitor"]["name"] == "val_loss"
        assert record["created"].endswith("Z")


def test_foreign_data_has_no_position(app: App, tmp_path: Path) -> None:
    arguments = (
        "--model",
        "tests.support.models.Regression",
        "--data",
        "tests.support.models.Own",
        "--trainer.max_epochs=1",
    )
    assert app("fit", *arguments, "--run_dir", tmp_path).status == 0
    record = newest(RunDir(str(tmp_path)))
    assert record is not None
    assert record.position is None


def test_a_truncated_newest_checkpoint_is_passed_over(app: App, tmp_path: Path) -> None:
    straight, damaged = str(tmp_path / "straight"), str(tmp_path / "damaged")
    fit(app, straight, 3)
    fit(app, damaged, 2)
    path = Path(damaged, RunDir.checkpoint(14))
    path.write_bytes(path.read_bytes()[:-100])
    ended = fit(app, damaged, 3)
    assert "skipping checkpoint step 14" in ended.err
    assert "resumed at step 7" in ended.err
    assert equal(state(straight)["state_dict"], state(damaged)["state_dict"])


def test_ckpt_path_overrides_by_hand_local_and_remote(app: App, storage: str) -> None:
    fit(app, storage, 2)
    other = f"{storage}-other"
    ended = fit(app, other, 3, "--ckpt_path", RunDir(storage).url_of(RunDir.checkpoint(7)))
    assert ended.status == 0, ended.err
    assert "step-00000007.ckpt" in ended.err
    assert sorted(RunDir(other).steps()["ckpt"]) == [7, 14, 21], "the new run stands by itself"
    # The same command goes on with what the run has by now, and not from its origin again.
    again = fit(app, other, 4, "--ckpt_path", RunDir(storage).url_of(RunDir.checkpoint(7)))
    assert "resumed at step 21" in again.err


def test_ckpt_path_never_rewrites_what_a_run_has_committed(app: App, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    fit(app, run, 2)
    before = listing(run)
    ended = fit(app, run, 3, "--ckpt_path", f"{run}/checkpoints/step-00000007.ckpt")
    assert ended.status == 2
    assert "give a new --run_dir" in ended.err
    assert listing(run) == before


def test_a_checkpoints_hyperparameters_never_override_flags_local_or_remote(app: App, storage: str) -> None:
    fit(app, storage, 1, "--model.learning_rate=0.01")
    other = f"{storage}-other"
    fit(app, other, 2, "--model.learning_rate=0.5", "--ckpt_path", RunDir(storage).url_of(RunDir.checkpoint(7)))
    assert state(other)["hyper_parameters"]["learning_rate"] == 0.5


def test_a_run_goes_on_only_with_its_own_model_and_a_mistake_costs_nothing(app: App, tmp_path: Path) -> None:
    run = str(tmp_path)
    digits = ("fit", "--config", "pipeline/configs/digits.yaml", "--run_dir", run, "--checkpoints.every_n_epochs=1")
    assert app(*digits, "--trainer.max_epochs=1").status == 0
    before = listing(run)
    other = fit(app, run, 2)
    assert other.status == 2
    assert "model.class_path='tests.support.models.Regression'" in other.err
    resized = app(*digits, "--trainer.max_epochs=2", "--model.input_dim=32")
    assert resized.status == 2
    assert "does not fit the checkpoint" in resized.err
    assert "size mismatch for encoder.l1.0.weight" in resized.err
    after = listing(run)
    assert {name: after[name] for name in before if "/logs/" not in name} == {
        name: value for name, value in before.items() if "/logs/" not in name
    }
    assert app(*digits, "--trainer.max_epochs=2").status == 0


def test_fast_dev_run_neither_resumes_nor_writes(app: App, storage: str) -> None:
    fit(app, storage, 1)
    before = listing(storage)
    for value in ("true", "7"):
        ended = fit(app, storage, 2, f"--trainer.fast_dev_run={value}")
        assert ended.status == 0
        assert "resumed" not in ended.err
    assert listing(storage) == before


def test_without_checkpointing_nothing_is_saved(app: App, tmp_path: Path) -> None:
    assert fit(app, str(tmp_path), 1, "--trainer.enable_checkpointing=false").status == 0
    assert not (tmp_path / "checkpoints").exists()
    assert (tmp_path / "fit.yaml").exists()


def test_a_monitor_that_nobody_logs_is_named_and_the_step_is_kept(app: App, tmp_path: Path) -> None:
    ended = fit(app, str(tmp_path), 2, "--checkpoints.monitor=val_los")
    assert ended.status == 2
    assert "checkpoints.monitor='val_los' is not logged" in ended.err
    assert "val_loss" in ended.err
    assert fit(app, str(tmp_path), 2, "--checkpoints.monitor=val_loss").status == 0
    assert json.loads((tmp_path / "checkpoints/step-00000014.json").read_text())["monitor"]["name"] == "val_loss"


def test_a_resumed_run_keeps_the_checkpoint_that_it_resumed_from(app: App, storage: str) -> None:
    fit(app, storage, 1)
    fit(app, storage, 2)
    assert sorted(RunDir(storage).steps()["json"]) == [7, 14]
