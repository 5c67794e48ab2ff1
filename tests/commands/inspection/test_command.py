"""Both subcommands print what they know first, and what is wrong after it."""

import os
import sys
from collections.abc import Callable

import pytest

from pipeline.cli import main
from tests.support.commands import DIGITS, Ended, command

App = Callable[..., Ended]


def test_help_explains_the_flags(app: App) -> None:
    assert all(flag in app("summary", "--help").out for flag in ("--max_depth", "--device_memory", "--json", "--data"))
    assert all(flag in app("data", "--help").out for flag in ("--samples", "--read", "--picture", "--json", "--data"))
    assert "--weights" not in app("data", "--help").out


def test_both_run_as_programs_and_leave_the_folder_as_it_was(tmp_path: object) -> None:
    config = ("--config", DIGITS, f"--trainer.default_root_dir={tmp_path}")
    for name in ("summary", "data"):
        ended = command(sys.executable, "-m", "pipeline", name, *config)
        assert ended.status == 0, ended.text
        assert ended.err == ""
        assert "Digits" in ended.out or "LitAutoEncoder" in ended.out


def test_a_reader_that_goes_away_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert main(["data", "--config", DIGITS, "--read=5"]) == 0
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), gone.fileno())
