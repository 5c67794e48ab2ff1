"""What callbacks, loggers and profilers of users write below the run directory arrives there, on every storage."""

import csv
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended, assert_one_message, torchrun
from tests.support.runs import ROWS, fit

App = Callable[..., Ended]


def files(run: str, folder: str = "") -> dict[str, int]:
    """Every file below a folder of a run, with its size."""
    where = RunDir(run)
    root = f"{where.path}/{folder}".rstrip("/")
    return {name.removeprefix(f"{root}/"): info["size"] for name, info in where.fs.find(root, detail=True).items()}


def load(run: str, name: str) -> dict[str, Any]:
    where = RunDir(run)
    with where.fs.open(f"{where.path}/{name}", "rb") as file:
        return torch.load(file, weights_only=True)


def test_a_second_model_checkpoint_in_its_default_folder_keeps_its_best_and_its_last(app: App, storage: str) -> None:
    more = (
        *("--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.monitor=val_loss"),
        *("--trainer.callbacks.save_top_k=1", "--trainer.callbacks.save_last=true"),
    )
    ended = fit(app, storage, 2, *more)
    assert ended.status == 0, ended.err
    names = files(storage, "logs/checkpoints")
    assert set(names) == {"epoch=1-step=14.ckpt", "last.ckpt"}, ended.err
    assert load(storage, "logs/checkpoints/last.ckpt")["global_step"] == 14
    ended = fit(app, storage, 3, *more)
    assert ended.status == 0, ended.err
    assert set(files(storage, "logs/checkpoints")) == {"epoch=2-step=21.ckpt", "last.ckpt"}, (
        "resumed: the worse is gone"
    )
    assert load(storage, "logs/checkpoints/last.ckpt")["global_step"] == 21


def test_a_model_checkpoint_in_a_folder_of_its_own_saves_every_n_steps(app: App, storage: str) -> None:
    more = (
        *("--trainer.callbacks=ModelCheckpoint", f"--trainer.callbacks.dirpath={storage}/mine"),
        *("--trainer.callbacks.every_n_train_steps=3", "--trainer.callbacks.save_top_k=-1"),
    )
    assert fit(app, storage, 1, *more).status == 0
    assert set(files(storage, "mine")) == {"epoch=0-step=3.ckpt", "epoch=0-step=6.ckpt"}
    assert load(storage, "mine/epoch=0-step=6.ckpt")["global_step"] == 6


class SavesAtTheEnd(pl.Callback):
    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("name", ["checkpoints/final.ckpt", "a/b/step-00000007.ckpt"])
def test_trainer_save_checkpoint_below_the_run_directory(app: App, storage: str, name: str) -> None:
    more = ("--trainer.callbacks=tests.test_user_output.SavesAtTheEnd", f"--trainer.callbacks.path={storage}/{name}")
    assert fit(app, storage, 1, *more).status == 0
    assert load(storage, name)["global_step"] == 7
    assert fit(app, storage, 2, *more).status == 0, "no sweep removes it, and it does not hinder a resume"
    assert load(storage, name)["global_step"] == 14


def test_a_checkpoint_that_is_named_like_one_of_the_runs_own_is_refused(app: App, storage: str) -> None:
    path = f"{storage}/checkpoints/step-00000007.ckpt"
    more = ("--trainer.callbacks=tests.test_user_output.SavesAtTheEnd", f"--trainer.callbacks.path={path}")
    assert fit(app, storage, 1).status == 0
    ended = fit(app, storage, 2, *more)
    assert ended.status == 2
    assert "is the name of one of the run's own checkpoints" in ended.err
    assert "Traceback" not in ended.err
    assert app("verify", "--run_dir", storage).status == 0


def test_a_csv_logger_below_the_run_directory(app: App, storage: str) -> None:
    more = (
        *("--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={storage}/csv", "--trainer.log_every_n_steps=1"),
        "--trainer.callbacks=ModelCheckpoint",
    )
    ended = fit(app, storage, 1, *more)
    assert ended.status == 0, ended.err
    assert set(files(storage, "csv/lightning_logs/version_0")) == {
        "checkpoints/epoch=0-step=7.ckpt",
        "hparams.yaml",
        "metrics.csv",
    }
    run = RunDir(storage)
    assert steps_of(run.read("csv/lightning_logs/version_0/metrics.csv")) == list(range(7))


def steps_of(table: bytes | None) -> list[int]:
    """The steps of which a table of metrics has the training loss."""
    return [int(row["step"]) for row in csv.DictReader((table or b"").decode().splitlines()) if row["train_loss"]]


def test_a_csv_logger_of_one_version_keeps_what_was_logged_before_a_resume(app: App, storage: str) -> None:
    more = (
        *("--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={storage}/csv", "--trainer.log_every_n_steps=1"),
        *("--trainer.logger.name=mine", "--trainer.logger.version=only"),
    )
    for epochs in (1, 2, 3):
        ended = fit(app, storage, epochs, *more)
        assert ended.status == 0, ended.err
    run = RunDir(storage)
    tables = [run.read(f"csv/mine/only/{name}.csv") for name in ("metrics.1", "metrics.2", "metrics")]
    assert [steps_of(table) for table in tables] == [list(range(7)), list(range(7, 14)), list(range(14, 21))]
    assert "csv/mine/only/metrics.csv of the attempt before is kept as metrics.2.csv" in ended.err


def test_a_tensorboard_logger_of_the_users_below_the_run_directory(app: App, storage: str, tmp_path: Path) -> None:
    more = ("--trainer.logger=TensorBoardLogger", f"--trainer.logger.save_dir={storage}/tb")
    ended = fit(app, storage, 1, *more, "--trainer.log_every_n_steps=1")
    assert ended.status == 0, ended.err
    run = RunDir(storage)
    run.fs.get(f"{run.path}/tb/", str(tmp_path / "copy"), recursive=True)
    assert scalars(tmp_path / "copy" / "lightning_logs" / "version_0", "train_loss") == list(range(7))


def scalars(folder: Path, tag: str) -> list[int]:
    """The steps at which TensorBoard finds a value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return [event.step for event in found.Scalars(tag)]


@pytest.mark.parametrize("storage", ["s3"], indirect=True)
@pytest.mark.parametrize("profiler", ["Simple", "Advanced"])
def test_a_profilers_report_goes_where_it_is_told(app: App, storage: str, profiler: str) -> None:
    more = (
        f"--trainer.profiler=lightning.pytorch.profilers.{profiler}Profiler",
        *(f"--trainer.profiler.dirpath={storage}/prof", "--trainer.profiler.filename=mine"),
    )
    ended = fit(app, storage, 1, *more)
    assert ended.status == 0, ended.err
    assert "run_training_epoch" in (RunDir(storage).read("prof/fit-mine.txt") or b"").decode()


@pytest.mark.parametrize(("storage", "told"), [("folder", False), ("s3", False), ("s3", True)], indirect=["storage"])
def test_torchs_profiler_leaves_its_trace_and_report(app: App, storage: str, told: bool) -> None:
    more = (
        "--trainer.profiler=lightning.pytorch.profilers.PyTorchProfiler",
        "--trainer.profiler.filename=mine",
        *([f"--trainer.profiler.dirpath={storage}/logs"] if told else []),
    )
    ended = fit(app, storage, 1, *more)
    assert ended.status == 0, ended.err
    names = files(storage, "logs")
    assert "fit-mine.txt" in names, "the report is written after the loggers have ended"
    trace = next(name for name in names if "training_step" in name and name.endswith(".pt.trace.json"))
    assert json.loads(RunDir(storage).read(f"logs/{trace}") or b"")["traceEvents"]
    assert not Path("s3:").exists()


class WritesBesideTheLogs(pl.Callback):
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = Path(str(trainer.log_dir), "images")
        folder.mkdir(exist_ok=True)
        (folder / f"{trainer.current_epoch}.txt").write_text(f"epoch {trainer.current_epoch}")


def test_what_a_callback_writes_by_plain_open_into_the_log_dir_arrives(app: App, storage: str) -> None:
    assert fit(app, storage, 2, "--trainer.callbacks=tests.test_user_output.WritesBesideTheLogs").status == 0
    run = RunDir(storage)
    assert [run.read(f"logs/images/{epoch}.txt") for epoch in range(2)] == [b"epoch 0", b"epoch 1"]


class Fails(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("on purpose")


def test_a_checkpoint_on_an_exception(app: App, storage: str) -> None:
    more = (
        "--trainer.callbacks=OnExceptionCheckpoint",
        f"--trainer.callbacks.dirpath={storage}",
        "--trainer.callbacks+=tests.test_user_output.Fails",
    )
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(app, storage, 1, *more)
    assert load(storage, "on_exception.ckpt")["global_step"] == 3


def test_lightning_never_chooses_the_checkpoint_of_a_callback_to_start_from(app: App, tmp_path: Path) -> None:
    saving = (
        *("--trainer.callbacks=OnExceptionCheckpoint", f"--trainer.callbacks.dirpath={tmp_path}"),
        *("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_last=true"),
        "--trainer.callbacks.every_n_train_steps=2",
    )
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(app, str(tmp_path), 1, *saving, "--trainer.callbacks+=tests.test_user_output.Fails")
    assert load(str(tmp_path), "logs/checkpoints/last.ckpt")["global_step"] == 2
    ended = fit(app, str(tmp_path), 1, *saving)
    assert ended.status == 0, ended.err
    assert "finished: step 7, epoch 1" in ended.err, (
        "the run resumes from its own checkpoints alone, and there was none yet"
    )


def test_a_checkpoint_io_of_the_users_is_one_message(app: App, tmp_path: Path) -> None:
    assert_one_message(
        fit(app, str(tmp_path), 1, "--trainer.plugins=AsyncCheckpointIO"),
        "trainer.plugins=AsyncCheckpointIO would take the place of the run's own checkpoint files",
    )


def test_a_file_that_is_saved_again_is_whole_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.training.checkpoint_io import RunIO

    io, path = RunIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)

    def killed(value: Any, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({"step": 2}, path)
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]
    assert io.load_checkpoint(path) == {"step": 1}


@pytest.mark.parametrize("bar", ["TQDMProgressBar", "tests.test_user_output.OwnBar"])
def test_a_progress_bar_callback_works_where_there_is_no_terminal(app: App, tmp_path: Path, bar: str) -> None:
    ended = fit(app, str(tmp_path), 1, f"--trainer.callbacks={bar}")
    assert ended.status == 0, ended.err
    assert ("Epoch 0: 100%" if bar.startswith("TQDM") else "own bar: 7 batches") in ended.out
    assert "epoch 1/1 ended: step 7/7" in ended.err


class OwnBar(pl.callbacks.ProgressBar):
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        print(f"own bar: {self.total_train_batches} batches")


def test_what_two_processes_write_beside_the_logs_arrives_and_lightning_speaks_once(s3: str) -> None:
    run = f"{s3}/{uuid.uuid4().hex}/run"
    more = ("--trainer.callbacks=tests.test_user_output.WritesByRank", "--trainer.profiler=simple")
    ended = torchrun(2, "-m", "pipeline", "fit", *ROWS, "--trainer.max_epochs=1", "--run_dir", run, *more)
    assert ended.status == 0, ended.text
    assert {name for name in files(run, "logs") if name.startswith("rank")} == {"rank0.txt", "rank1.txt"}
    for line in ("`Trainer.fit` stopped: `max_epochs=1` reached.", "FIT Profiler Report"):
        assert ended.text.count(line) == 1


class WritesByRank(pl.Callback):
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        Path(str(trainer.log_dir), f"rank{trainer.global_rank}.txt").write_text("x")
