"""Each step is logged once with its exact loss, and read once its line is whole."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commands.drill.compare import TrainedRun
from pipeline.commands.drill.step_log import FOLDER, StepLog, pace, set_pace
from tests.support.commands import Ended
from tests.support.drilled import TINY, trained_run

App = Callable[..., Ended]


@pytest.fixture
def trained(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainedRun:
    monkeypatch.setenv(FOLDER, str(tmp_path / "log"))
    return trained_run(app, tmp_path)


def test_notes_hold_each_step_once_with_its_loss(trained: TrainedRun) -> None:
    notes = trained.log.first
    assert [note.step for note in notes] == list(range(1, 15))
    assert all(float.fromhex(note.losses[0]) > 0 for note in notes)
    assert len({note.losses for note in notes}) == 14
    assert {note.pid for note in notes} == {os.getpid()}
    assert trained.log.repeated == 0


def test_steps_that_are_accumulated_hold_the_losses_of_all_their_batches(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = StepLog(tmp_path / "notes", 1)
    monkeypatch.setenv(FOLDER, str(log.folder))
    assert app(*TINY, "--trainer.accumulate_grad_batches=2", "--run_dir", tmp_path / "run").status == 0
    log.read()
    assert [(note.step, len(note.losses)) for note in log.first[:4]] == [(1, 2), (2, 2), (3, 2), (4, 1)]


def test_a_drilled_configuration_trains_outside_a_drill(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    assert app(*TINY, "--run_dir", tmp_path / "run").status == 0


def test_a_torn_note_is_read_once_it_is_whole(tmp_path: Path) -> None:
    log = StepLog(tmp_path, 1)
    line = json.dumps({"step": 1, "losses": ["0x1p+0"], "pid": 1, "at": 2.0}) + "\n"
    (tmp_path / "rank-0.jsonl").write_text(line + line[:9])
    assert (log.read(), log.highest, log.repeated) == (1, 1, 0)
    (tmp_path / "rank-0.jsonl").write_text(line + line)
    assert (log.read(), log.highest, log.repeated) == (2, 1, 1)
    assert pace(tmp_path) == 0
    set_pace(tmp_path, 0.25)
    assert pace(tmp_path) == 0.25
