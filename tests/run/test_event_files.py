"""Scalars are read from event files as TensorBoard shows them, whatever restarts and damage did to the files."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.run import event_files
from pipeline.run.event_files import LoggedScalars, read_scalars
from pipeline.run.run_dir import RunDir
from tests.support.event_logs import Event, SessionLog, event_file, framed, scalar, write_events


def points(found: LoggedScalars, name: str) -> list[tuple[int, float]]:
    curve = found.curves[name]
    return list(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))


def loss(*steps: int) -> list[tuple[str, int, float]]:
    return [("loss", step, step / 10) for step in steps]


def attempt(number: int, started: str, first_step: int | None) -> dict[str, Any]:
    return {"attempt": number, "started": started, "first_step": first_step}


def test_what_torchs_writer_logs_is_read_on_each_storage(storage: str, tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "local")) as writer:
        for step in range(20):
            writer.add_scalar("train/loss", 1 / (step + 1), step)
        writer.add_scalar("accuracy", 0.5, 19, new_style=True, double_precision=True)
        writer.add_image("picture", np.zeros((3, 200, 200), np.uint8), 0)
        writer.add_histogram("weights", np.arange(100), 0)
        writer.add_text("note", "x" * 100_000, 0)
    run = RunDir(storage)
    (path,) = (tmp_path / "local").glob("events.*")
    run.write(f"logs/sub/{path.name}", path.read_bytes())
    run.write("logs/hparams.yaml", b"{}")
    found = read_scalars(run)
    assert points(found, "sub/train/loss") == [(step, pytest.approx(1 / (step + 1))) for step in range(20)]
    assert points(found, "sub/accuracy") == [(19, 0.5)]
    assert set(found.curves) == {"sub/train/loss", "sub/accuracy"}
    assert (found.files, found.hidden, found.damage) == (1, 0, [])


def test_a_run_without_logs_has_no_curves(storage: str) -> None:
    found = read_scalars(RunDir(storage))
    assert (found.curves, found.files, found.damage) == ({}, 0, [])


def test_a_start_hides_what_earlier_files_say_of_later_steps_as_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_events(tmp_path / "logs", 1, loss(*range(0, 100, 10)))
    write_events(tmp_path / "logs", 2, loss(*range(50, 90, 10)), start=50)
    write_events(tmp_path / "logs", 3, [*loss(70, 80), ("lr", 70, 0.1)], start=70)
    found = read_scalars(RunDir(str(tmp_path)))
    theirs = EventAccumulator(str(tmp_path / "logs"))
    theirs.Reload()
    assert points(found, "loss") == [(each.step, each.value) for each in theirs.Scalars("loss")]
    assert [step for step, _ in points(found, "loss")] == list(range(0, 90, 10))
    assert found.hidden == 7


def test_without_a_start_the_attempts_say_from_where_a_file_counts(tmp_path: Path) -> None:
    day = 86_400
    write_events(tmp_path / "logs", day, loss(10, 20, 30, 40))
    write_events(tmp_path / "logs", 2 * day, loss(30, 40, 50))
    write_events(tmp_path / "logs", 2 * day + 60, loss(60))  # of the same attempt: a mirrored folder has many files
    write_events(tmp_path / "logs", 4 * day, loss(50, 60, 70))
    attempts = [
        attempt(1, "1970-01-01T23:00:00Z", 0),
        attempt(2, "1970-01-02T23:00:00Z", 25),
        attempt(3, "1970-01-03T23:00:00Z", 45),  # killed before it logged
        attempt(4, "1970-01-04T23:00:00Z", None),  # never trained
        {"started": 7, "first_step": "x"},  # damaged
        attempt(5, "1970-01-04T23:30:00Z", 55),
    ]
    found = read_scalars(RunDir(str(tmp_path)), attempts)
    assert [step for step, _ in points(found, "loss")] == [10, 20, 30, 40, 50, 60, 70]
    assert found.hidden == 4, "30 and 40 of the first, 50 and 60 of the second"


def test_where_checkpoints_are_marked_only_a_start_hides_anything(tmp_path: Path) -> None:
    path = write_events(tmp_path / "logs", 1, loss(10, 20))
    mark = Event(step=20, session_log=SessionLog(status=SessionLog.CHECKPOINT))
    path.write_bytes(path.read_bytes() + framed([mark]))
    write_events(tmp_path / "logs", 100, loss(30))
    attempts = [attempt(1, "1970-01-01T00:00:00Z", 0), attempt(2, "1970-01-01T00:01:00Z", 20)]
    found = read_scalars(RunDir(str(tmp_path)), attempts)
    assert [step for step, _ in points(found, "loss")] == [10, 20, 30], "20 was logged before the checkpoint"


def test_folders_are_apart(tmp_path: Path) -> None:
    write_events(tmp_path / "logs" / "a", 1, loss(1, 2, 3))
    write_events(tmp_path / "logs" / "b", 2, loss(1), start=0)
    found = read_scalars(RunDir(str(tmp_path)))
    assert [step for step, _ in points(found, "a/loss")] == [1, 2, 3]
    assert [step for step, _ in points(found, "b/loss")] == [1]


def test_values_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    write_events(tmp_path / "logs", 1, [("loss", 1, math.nan), ("loss", 2, math.inf), ("loss", 3, -math.inf)])
    values = read_scalars(RunDir(str(tmp_path))).curves["loss"].values
    assert math.isnan(values[0])
    assert values[1:].tolist() == [math.inf, -math.inf]


def test_a_torn_tail_loses_its_record_only_and_is_said(tmp_path: Path) -> None:
    path = write_events(tmp_path / "logs", 1, loss(1, 2, 3))
    path.write_bytes(path.read_bytes()[:-5])
    found = read_scalars(RunDir(str(tmp_path)))
    assert [step for step, _ in points(found, "loss")] == [1, 2]
    (said,) = found.damage
    assert path.name in said
    assert "incomplete" in said


def test_damage_within_a_file_is_left_out_and_said(tmp_path: Path) -> None:
    path = write_events(tmp_path / "logs", 1, loss(*range(10)))
    whole = path.read_bytes()
    at = whole.index(framed([scalar("loss", 4, 0.4)]))
    path.write_bytes(whole[: at + 20] + b"\xff" + whole[at + 21 :])
    found = read_scalars(RunDir(str(tmp_path)))
    assert [step for step, _ in points(found, "loss")] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert "1 damaged record left out" in found.damage[0]
    path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    found = read_scalars(RunDir(str(tmp_path)))
    assert [step for step, _ in points(found, "loss")] == [0, 1, 2, 3]
    assert "what follows a damaged length" in found.damage[0]


@pytest.mark.parametrize("content", [b"", b"no record", bytes(1000), framed([Event()]), b"\xff" * 50])
def test_a_foreign_file_of_that_name_harms_no_other(tmp_path: Path, content: bytes) -> None:
    write_events(tmp_path / "logs", 1, loss(1, 2))
    (tmp_path / "logs" / "events.out.tfevents.2.x").write_bytes(content)
    assert points(read_scalars(RunDir(str(tmp_path))), "loss") == [(1, pytest.approx(0.1)), (2, pytest.approx(0.2))]


def test_a_record_that_is_no_event_is_left_out(tmp_path: Path) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    path = write_events(tmp_path / "logs", 1, loss(1))
    with path.open("ab") as file:
        RecordWriter(file).write(b"\x0f\xff\xff")
    found = read_scalars(RunDir(str(tmp_path)))
    assert len(points(found, "loss")) == 1
    assert "1 damaged record left out" in found.damage[0]


@pytest.mark.parametrize("block", [64, 100, 1000])
def test_a_large_file_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    write_events(tmp_path / "logs", 1, loss(*range(40)))
    whole = read_scalars(RunDir(str(tmp_path)))
    monkeypatch.setattr(event_files, "_BLOCK", block)
    pieces = read_scalars(RunDir(str(tmp_path)))
    assert points(pieces, "loss") == points(whole, "loss")
    assert pieces.damage == []


def test_many_small_files_are_one_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 31):
        write_events(tmp_path / "logs", number, loss(number))
    monkeypatch.setattr(event_files, "_FILES", 7)
    found = read_scalars(RunDir(str(tmp_path)))
    assert [step for step, _ in points(found, "loss")] == list(range(1, 31))
    assert found.files == 30


def test_an_empty_event_file_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "events.out.tfevents.1.x").write_bytes(event_file([]))
    found = read_scalars(RunDir(str(tmp_path)))
    assert (found.curves, found.damage) == ({}, [])
