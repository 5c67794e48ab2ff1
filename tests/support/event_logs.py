"""Event files as TensorBoard's own writer makes them, with the times that a test wants."""

import io
from collections.abc import Iterable
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

Point = tuple[str, int, float]


def framed(events: Iterable[Event]) -> bytes:
    """Events as a file holds them."""
    data = io.BytesIO()
    writer = RecordWriter(data)
    for event in events:
        writer.write(event.SerializeToString())
    return data.getvalue()


def scalar(tag: str, step: int, value: float, time: float = 1.0) -> Event:
    """A value as torch's writer logs it."""
    return Event(wall_time=time, step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))


def event_file(points: Iterable[Point], began: float = 1.0, start: int | None = None) -> bytes:
    """An event file: its version, then a START if it has one, then the points (tag, step, value)."""
    first = [Event(wall_time=began, file_version="brain.Event:2")]
    if start is not None:
        first.append(Event(wall_time=began, step=start, session_log=SessionLog(status=SessionLog.START)))
    return framed([*first, *(scalar(tag, step, value, began) for tag, step, value in points)])


def write_events(folder: Path, number: int, *arguments: object, **named: object) -> Path:
    """Write an event file into a folder; the files of later numbers were begun later."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.{number}.host.1.0"
    path.write_bytes(event_file(*arguments, **{"began": float(number), **named}))  # type: ignore[arg-type]
    return path
