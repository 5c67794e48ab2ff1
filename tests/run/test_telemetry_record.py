"""The telemetry of a run on its storage."""

import time
from pathlib import Path

import pytest

from pipeline.run import telemetry_record
from pipeline.run.run_dir import RunDir
from pipeline.run.telemetry_record import TELEMETRY, TelemetryWriter, read_telemetry


def window(step: int) -> dict[str, float]:
    return {"time": 1e9 + step, "step": step, "samples_per_second": 10.5}


def steps(run: RunDir) -> list[list[int]]:
    return [[each["step"] for each in attempt.windows] for attempt in read_telemetry(run)]


def test_what_was_written_is_read_by_attempt(storage: str) -> None:
    run = RunDir(storage)
    for attempt, reached in ((1, (5, 10)), (2, (7, 12))):
        writer = TelemetryWriter(run, attempt, {"world_size": 2, "hosts": ["a", "b"]})
        for step in reached:
            writer.add(window(step))
        writer.finish(30)
        assert writer.problem is None
    assert steps(run) == [[5, 10], [7, 12]]
    header = read_telemetry(run)[1].header
    assert (header["schema"], header["attempt"], header["hosts"]) == (1, 2, ["a", "b"])


def test_on_an_object_store_an_attempt_has_parts(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry_record, "_BETWEEN_PARTS", 0.0)
    run = RunDir(storage)
    writer = TelemetryWriter(run, 1, {})
    for step in range(1, 4):
        writer.add(window(step))
        writer._thread.join(30)  # type: ignore[union-attr]
    writer.finish(30)
    assert steps(run) == [[1, 2, 3]]
    assert len(run.names(TELEMETRY)) == (1 if run.is_local else 3)


def test_torn_and_foreign_lines_are_left_out(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    writer = TelemetryWriter(run, 1, {})
    writer.add(window(1))
    writer.finish(30)
    path = tmp_path / TELEMETRY / "0001-0001.jsonl"
    with path.open("ab") as file:
        file.write(b'[1, 2]\n{"step": "x", "time": 1}\n{"step": true, "time": 1}\n\xff\n' + b"[" * 100_000 + b'\n{"ti')
    (path.parent / "notes.txt").write_text("mine")
    assert steps(run) == [[1]]


def test_a_run_without_telemetry_has_none(tmp_path: Path) -> None:
    assert read_telemetry(RunDir(str(tmp_path))) == []


def test_what_a_storage_does_not_take_is_written_later(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    folder = tmp_path / TELEMETRY
    folder.parent.mkdir()
    folder.write_text("a file in the place of the folder")
    writer = TelemetryWriter(run, 1, {})
    writer.add(window(1))
    writer.finish(30)
    assert isinstance(writer.problem, OSError)
    folder.unlink()
    writer.add(window(2))
    until = time.monotonic() + 30
    while writer.problem is not None and time.monotonic() < until:
        time.sleep(0.01)
    assert steps(run) == [[1, 2]]
