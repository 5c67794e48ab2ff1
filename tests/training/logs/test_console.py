"""What the user reads: few plain lines, each once and whole."""

import logging
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.process.topology import Topology
from pipeline.training.logs import console
from tests.support.commands import DIGITS, Ended
from tests.support.terminals import Watched

FIT = ("fit", "--config", DIGITS, "--trainer.enable_model_summary=false")
ALONE = Topology.from_environment({})


def test_fast_epochs_get_one_line_every_few_seconds_and_each_event_its_own(
    app: Callable[..., Ended], tmp_path: Path
) -> None:
    started = time.monotonic()
    ended = app(*FIT, "--trainer.max_epochs=20", "--run_dir", tmp_path)
    lines = ended.err.splitlines()
    most = 1 + (time.monotonic() - started) / 10
    assert 1 <= len([line for line in lines if line.startswith("epoch ")]) <= most
    saved = [line for line in lines if line.startswith("saved checkpoint step")]
    assert 2 <= len(saved) <= 1 + most, "of four"
    assert saved[0].startswith("saved checkpoint step 200,")
    assert saved[-1].startswith("saved checkpoint step 800,")
    for word in ("started on", "finished:", "trained ", "goodput ", "suggested checkpoint interval: "):
        assert len([line for line in lines if line.startswith(word)]) == 1
    assert ended.out == ""


def test_no_known_warning_reaches_the_user(app: Callable[..., Ended], tmp_path: Path) -> None:
    ended = app(*FIT, "--trainer.max_epochs=1", "--run_dir", tmp_path)
    assert "Warning" not in ended.text
    assert "warn(" not in ended.text
    assert "GPU available" not in ended.text
    assert "Tip" not in ended.text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--trainer.profiler=simple"], "FIT Profiler Report"),
        (["--trainer.profiler=advanced"], "Profile stats for: run_training_epoch"),
        (["--trainer.max_epochs=1"], "`Trainer.fit` stopped: `max_epochs=1` reached."),
        (["--trainer.max_steps=3"], "`Trainer.fit` stopped: `max_steps=3` reached."),
        (["--trainer.max_time=00:00:00:00"], "Time limit reached."),
        (
            ["--trainer.callbacks=LearningRateFinder", "--trainer.callbacks.num_training_steps=30"],
            "Learning rate set to ",
        ),
        (
            [
                *("--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val_loss"),
                *("--trainer.callbacks.verbose=true", "--trainer.callbacks.stopping_threshold=1000"),
            ],
            "Stopping threshold reached: val_loss = ",
        ),
        (["--trainer.detect_anomaly=true"], "You have turned on `Trainer(detect_anomaly=True)`"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_lightning_answers_to_a_question_of_the_users_is_shown_once(
    app: Callable[..., Ended], tmp_path: Path, flags: list[str], said: str
) -> None:
    ended = app(*FIT, "--trainer.max_epochs=1", *flags, "--run_dir", tmp_path)
    assert ended.status == 0, ended.err
    assert ended.text.count(said) == 1, ended.err


def test_a_line_that_comes_while_a_bar_is_drawn_keeps_its_letters(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        console.set_up(ALONE)
    from tqdm import tqdm

    with tqdm(total=3, file=sys.stdout, leave=False, miniters=1, mininterval=0) as bar:
        for step in range(3):
            bar.update()
            logging.getLogger("pipeline").info("saved step %d", step)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [f"saved step {step}" for step in range(3)]
    # What was drawn last before a line was cleared, from the line's start.
    assert captured.out.count("\r" + " " * 10) >= 3 or "\x1b[2K" in captured.out


def test_commits_that_follow_one_another_are_one_line_and_the_newest_is_said_before_what_comes_after(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with capsys.disabled():
        console.set_up(ALONE)
    log = logging.getLogger("pipeline.checkpoint.saver")

    def commit(step: int) -> None:
        log.info("saved step %d", step, extra={"folds": True})

    for step in range(1, 6):
        commit(step)
    log.info("epoch 1: step 5")
    log.info("finished", extra={"ends": True})
    commit(6)
    log.warning("a problem")
    commit(7)
    console.settle()
    assert capsys.readouterr().err.splitlines() == [
        *("saved step 1", "epoch 1: step 5", "saved step 5", "finished", "saved step 6", "a problem", "saved step 7")
    ]


def test_what_a_library_logs_that_nobody_has_configured_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        console.set_up(ALONE)
    record = logging.LogRecord("a.library", logging.WARNING, "", 0, "a problem of %s", ("a library's",), None)
    assert logging.lastResort is not None
    logging.lastResort.handle(record)
    assert capsys.readouterr().err == "a problem of a library's\n"
    assert logging.lastResort.level == logging.WARNING


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("bar", "end"),
    [("TQDM", r"Epoch 1: 100%.*train_loss=0"), ("Rich", r"Epoch 1/1.* 40/40 .*train_loss: 0")],
)
def test_a_users_own_bar_takes_the_place_of_the_live_view(bar: str, end: str, tmp_path: Path) -> None:
    chosen = f"--trainer.callbacks=lightning.pytorch.callbacks.{bar}ProgressBar"
    arguments = [sys.executable, "-m", "pipeline", *FIT, "--trainer.max_epochs=2", "--run_dir", tmp_path, chosen]
    with Watched(arguments, rows=40, columns=160) as terminal:
        assert terminal.status() == 0, terminal.text
        assert re.search(end, terminal.raw.decode())
        lines = terminal.text.splitlines()
        assert any(line.startswith("started on 1 node") for line in lines)
        assert "saved checkpoint step 80, " in terminal.raw.decode(), "whole, wherever the user's bar puts it"
        assert b"\x1b[1;38r" not in terminal.raw, "no rows are taken"
