"""What the user reads: bars on a terminal only, elsewhere few plain lines, each once."""

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


@pytest.mark.timeout(60)
def test_on_a_terminal_there_is_a_progress_bar(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (40, 160))
    arguments = [sys.executable, "-m", "pipeline", *FIT, "--trainer.max_epochs=2", "--run_dir", str(tmp_path)]
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
    assert re.search(rb"Epoch 1: 100%.*train_loss", shown)
    assert b"started on 1 node" in shown
