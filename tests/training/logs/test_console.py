"""What the user reads: bars on a terminal only, elsewhere few plain lines, each once."""

import logging
import os
import pty
import re
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.training.logs import console
from tests.support.commands import DIGITS, ROOT, Ended

FIT = ("fit", "--config", DIGITS, "--trainer.enable_model_summary=false")


def test_fast_epochs_get_one_line_every_few_seconds_and_each_event_its_own(
    app: Callable[..., Ended], tmp_path: Path
) -> None:
    started = time.monotonic()
    ended = app(*FIT, "--trainer.max_epochs=20", "--run_dir", tmp_path)
    lines = ended.err.splitlines()
    assert len([line for line in lines if line.startswith("epoch ")]) <= 1 + (time.monotonic() - started) / 5
    for word, times in (("started on", 1), ("saved checkpoint step", 4), ("finished:", 1), ("trained ", 1)):
        assert len([line for line in lines if line.startswith(word)]) == times
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
        console.set_up(0)
    from tqdm import tqdm

    with tqdm(total=3, file=sys.stdout, leave=False, miniters=1, mininterval=0) as bar:
        for step in range(3):
            bar.update()
            logging.getLogger("pipeline").info("saved step %d", step)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [f"saved step {step}" for step in range(3)]
    # What was drawn last before a line was cleared, from the line's start.
    assert captured.out.count("\r" + " " * 10) >= 3 or "\x1b[2K" in captured.out


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("bar", "end"),
    [("TQDM", rb"Epoch 1: 100%.*train_loss=0"), ("Rich", rb"Epoch 1/1.* 40/40 .*train_loss: 0")],
)
def test_on_a_terminal_there_is_a_progress_bar(bar: str, end: bytes, tmp_path: Path) -> None:
    # By default Lightning draws rich's bar where that is installed, else tqdm's.
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (40, 160))
    chosen = f"--trainer.callbacks=lightning.pytorch.callbacks.{bar}ProgressBar"
    arguments = [sys.executable, "-m", "pipeline", *FIT, "--trainer.max_epochs=2", "--run_dir", str(tmp_path), chosen]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=follower, stderr=follower, stdin=subprocess.DEVNULL)
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 1 << 16)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0
    assert re.search(end, shown)
    assert b"started on 1 node" in shown
