"""Where nobody watches, one rank writes a line now and then, and looks at no value in between."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest

from pipeline.training.logs import lines, pace
from tests.support.commands import DIGITS, Ended, command, torchrun
from tests.support.runs import ROWS, fit

App = Callable[..., Ended]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is due every 5 %, however short that is."""
    for module in (lines, pace):
        monkeypatch.setattr(module, "LEAST", 0.0)
    monkeypatch.setattr(lines, "_LOOK_AGAIN", 0.0)
    monkeypatch.setattr(pace, "SHARE", 0.2)


def progress_lines(err: str) -> list[str]:
    return re.findall(r"^epoch .*", err, re.MULTILINE)


def test_a_line_says_how_far_it_is_and_what_the_model_logs(app: App, tmp_path: Path, eager: None) -> None:
    found = progress_lines(fit(app, str(tmp_path), 3).err)
    training = [line for line in found if "ended" not in line and "validating" not in line]
    steps = [int(step) for step in re.findall(r": step (\d+)/21 ", "\n".join(training))]
    assert steps == [5, 10, 15, 20], found
    pattern = (
        r"epoch \d/3: step \d+/21 \(\d+ %\), loss [\d.e-]+, [\d,.]+ samples/s, [\d.]+ s left(, saving a checkpoint)?"
    )
    for line in training:
        assert re.fullmatch(pattern, line), line
    ends = [line for line in found if "ended" in line]
    assert ends[0].startswith("epoch 1/3 ended: step 7/21 (33 %), train_loss ")


def test_between_two_lines_no_value_is_read(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    stock = pl.Trainer.progress_bar_metrics

    def read(trainer: pl.Trainer) -> object:
        reads.append(trainer.global_step)
        return stock.fget(trainer)  # type: ignore[attr-defined]

    monkeypatch.setattr(pl.Trainer, "progress_bar_metrics", property(read))
    ended = fit(app, str(tmp_path), 3)
    assert reads == [7], "for the first epoch's end, and no other line was due"
    assert progress_lines(ended.err)[0].startswith("epoch 1/3 ended: step 7/21 (33 %), ")
    assert len(progress_lines(ended.err)) == 1


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--trainer.max_steps=10", "--trainer.max_epochs=-1"), "epoch 1 ended: step 7/10 (70 %)"),
        (("--trainer.max_epochs=2", "--trainer.accumulate_grad_batches=2"), "epoch 1/2 ended: step 4/8 (50 %)"),
        (
            ("--trainer.max_epochs=-1", "--trainer.callbacks=tests.training.logs.test_lines.StopsAt7"),
            "epoch 1 ended: step 7",
        ),
    ],
    ids=["steps", "accumulates", "endless"],
)
def test_the_end_is_that_of_what_was_asked_for(app: App, tmp_path: Path, flags: tuple[str, ...], line: str) -> None:
    ended = app("fit", *ROWS, "--run_dir", tmp_path, *flags)
    assert ended.status == 0, ended.err
    assert progress_lines(ended.err)[0].startswith(f"{line},"), ended.err


class StopsAt7(pl.Callback):
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = True


def test_a_resume_counts_from_where_it_stands(app: App, tmp_path: Path, eager: None) -> None:
    assert fit(app, str(tmp_path), 2).status == 0
    ended = fit(app, str(tmp_path), 3)
    assert "started on 1 node x 1 process, attempt 2: " in ended.err
    assert progress_lines(ended.err)[0].startswith("epoch 3/3: step 15/21 (71 %)"), ended.err
    assert "trained 7 steps in" in ended.err


def test_test_and_predict_say_how_far_they_are(app: App, tmp_path: Path, eager: None) -> None:
    quick = ("--trainer.max_epochs=1", "--trainer.enable_model_summary=false")
    assert app("fit", "--config", DIGITS, "--run_dir", tmp_path, *quick).status == 0
    for stage, subcommand in (("testing", "test"), ("predicting", "predict")):
        err = app(subcommand, "--run_dir", tmp_path).err
        found = re.findall(
            rf"^{stage}: batch (\d+)/12 \(\d+ %\)(?:, [\d,.]+ samples/s)?(?:, .* left)?$", err, re.MULTILINE
        )
        assert [*map(int, found)] == [3, 6, 9, 12], err


@pytest.mark.timeout(90)
def test_lines_for_machines_are_all_json_and_have_the_figures_as_fields(tmp_path: Path) -> None:
    more = ("--trainer.max_epochs=2", "--checkpoints.every_n_steps=3", "--model=tests.support.chatty.WarnsOnRank1")
    ended = torchrun(2, "-m", "pipeline", "fit", *ROWS, *more, "--log_format=json", "--run_dir", tmp_path / "run")
    assert ended.status == 0, ended.text
    texts = [line for line in ended.err.splitlines() if not line.startswith("written by C code")]
    found = [json.loads(line) for line in texts]
    assert all([*each][:5] == ["time", "level", "rank", "logger", "message"] for each in found)
    first = next(each for each in found if each.get("event") == "epoch")
    assert (first["epoch"], first["epochs"], first["step"], first["steps"]) == (1, 2, 4, 8)
    assert first["values"]["own_loss"] > 0
    assert first["samples_per_second"] > 0
    saved = [each["step"] for each in found if each.get("event") == "checkpoint"]
    assert saved[0] == 3
    assert saved[-1] == 8
    problems = {each["message"]: (each["rank"], each["level"]) for each in found if each["level"] == "warning"}
    assert problems["only rank 1 has this problem"] == (1, "warning")
    assert problems["every rank has this problem"] == (0, "warning")
    assert any("a warning of the model's own" in text and rank == 0 for text, (rank, _) in problems.items())
    assert not [each for each in found if each["rank"] != 0 and each["level"] == "info"]


@pytest.mark.timeout(90)
def test_the_agent_speaks_as_its_workers_do(tmp_path: Path) -> None:
    agent = ("-m", "pipeline.agent", "--nproc_per_node", "1", "--max_restarts", "1", "-m", "pipeline")
    more = ("--model=tests.support.chatty.Chatty", "--model.fails_at=3", "--log_format", "json")
    ended = command(sys.executable, *agent, "fit", *ROWS, *more, "--run_dir", tmp_path / "run")
    assert ended.status == 1, ended.text
    found = [json.loads(line) for line in ended.err.splitlines() if not line.startswith("written by C code")]
    (restart,) = [each for each in found if "restart 1 of 1" in each["message"]]
    assert (restart["level"], restart["rank"]) == ("warning", None)
    assert "a fault of the model's own" in restart["message"], "with its traceback, in one line"
    assert found[-1]["level"] == "error"
    assert any(each["message"].startswith("resumed at step ") or "attempt 2" in each["message"] for each in found)
