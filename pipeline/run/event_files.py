"""The scalars that a run has logged for TensorBoard, read from its event files on any storage.

Read without torch and without TensorBoard's own reader, which takes minutes for a million values. An event file is a
row of TFRecords, each with a serialized `Event`. What is torn or damaged is left out, and said.

A run that was resumed has logged some steps twice. As in TensorBoard, a later file hides what earlier ones of its
folder say of the steps from its start on. That start is the `SessionLog.START` of the file; where an earlier version
of this program, or a logger of the user's own, wrote none, it is the step from which its attempt trained.
"""

import re
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.run.retry import patiently
from pipeline.run.run_dir import LOGS, RunDir
from pipeline.run.tfrecords import RecordFrames, frames, intact

_EVENTS = re.compile(r"(?:^|.*/)events\.out\.tfevents\.[^/]*")
_SCALARS = 1 << 16
"""Bytes of the longest record that is parsed: a longer one holds images or histograms."""
_BLOCK = 64 << 20
"""Bytes that are read from a storage at once."""
_FILES = 256
"""Files that are read from a storage at once."""
_START, _CHECKPOINT = 1, 3
"""Of `SessionLog`. A run whose files have marks of its checkpoints has a START wherever values are logged again."""
_FLOAT, _DOUBLE = 1, 2
"""Types of a TensorProto, with the format of its bytes."""
_FORMATS = {_FLOAT: "<f", _DOUBLE: "<d"}


@dataclass(frozen=True)
class LoggedCurve:
    """What a run has logged under one name, in the order in which it was logged.

    Attributes:
        name: The tag, behind its folder within `logs/` if it is not there itself.
        steps: (n,) int64.
        values: (n,) float64, some of which may be NaN or infinite.
    """

    name: str
    steps: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True)
class LoggedScalars:
    """All that a run has logged.

    Attributes:
        curves: By name, sorted.
        files: Number of the event files.
        hidden: Values that a later attempt logged again.
        damage: What could not be read, a sentence for each file.
    """

    curves: dict[str, LoggedCurve]
    files: int
    hidden: int
    damage: list[str]


@dataclass
class _Stretch:
    """What a file holds from its beginning, or from a START within it, to the next one.

    Attributes:
        start: The step of the START; None where there is none.
        points: By tag, the steps and the values.
    """

    start: int | None = None
    points: dict[str, tuple["array[int]", "array[float]"]] = field(default_factory=dict)


@dataclass
class _EventFile:
    folder: str
    name: str
    began: float = 0.0
    marked: bool = False
    stretches: list[_Stretch] = field(default_factory=lambda: [_Stretch()])


def read_scalars(run: RunDir, attempts: Sequence[Mapping[str, Any]] = ()) -> LoggedScalars:
    """Read all event files below `logs/`.

    Args:
        run: The run directory.
        attempts: The records of its attempts, which say from which step each trained.

    Raises:
        Exception: The storage failed.
    """
    sizes = _sizes(run)
    damage: list[str] = []
    files = []
    for name, data in _contents(run, sizes):
        file, problems = _parsed(name, data)
        files.append(file)
        if problems:
            damage.append(f"{LOGS}/{name}: {', '.join(problems)}")
    curves: dict[str, LoggedCurve] = {}
    hidden = 0
    for folder in sorted({file.folder for file in files}):
        found, purged = _joined(folder, [file for file in files if file.folder == folder], _Starts(attempts))
        curves |= found
        hidden += purged
    return LoggedScalars(dict(sorted(curves.items())), len(files), hidden, damage)


class _Starts:
    """From which step the attempt trained that wrote a file, by when the file was begun."""

    def __init__(self, attempts: Sequence[Mapping[str, Any]]) -> None:
        found = []
        for attempt in attempts:
            try:
                step = attempt["first_step"]
                found.append(
                    (datetime.fromisoformat(attempt["started"]).timestamp(), None if step is None else int(step))
                )
            except (KeyError, TypeError, ValueError):
                continue
        self._starts = sorted(found, key=lambda each: each[0])

    def since(self, earlier: float, began: float) -> int | None:
        """Return the least step from which an attempt began between two moments; None if none did."""
        times = [time for time, _ in self._starts]
        between = self._starts[bisect_right(times, earlier) : bisect_right(times, began)]
        return min((step for _, step in between if step is not None), default=None)


def _sizes(run: RunDir) -> dict[str, int]:
    """Return the bytes of each event file, by its name within `logs/`."""
    root = f"{run.path}/{LOGS}/"

    def listed() -> dict[str, Any]:
        try:
            return dict(run.fs.find(root.rstrip("/"), detail=True))
        except FileNotFoundError:
            return {}

    found = patiently(f"run_dir={run.label!r}", listed)
    names = ((path[len(root) :], info) for path, info in found.items() if path.startswith(root))
    return {name: int(info.get("size") or 0) for name, info in sorted(names) if _EVENTS.fullmatch(name)}


def _contents(run: RunDir, sizes: Mapping[str, int]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield the content of each file in blocks: small files several at once, large ones piece by piece."""
    small: list[str] = []
    room = _BLOCK
    for name, size in sizes.items():
        if size > _BLOCK:
            yield name, _blocks(run, name, size)
            continue
        if size > room or len(small) == _FILES:
            yield from _several(run, small)
            small, room = [], _BLOCK
        small.append(name)
        room -= size
    yield from _several(run, small)


def _several(run: RunDir, names: list[str]) -> Iterator[tuple[str, Iterator[bytes]]]:
    found = run.read_all(f"{LOGS}/{name}" for name in names)
    for name in names:
        if (data := found[f"{LOGS}/{name}"]) is not None:  # else removed in the meantime
            yield name, iter([data])


def _blocks(run: RunDir, name: str, size: int) -> Iterator[bytes]:
    path = f"{run.path}/{LOGS}/{name}"
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        yield patiently(
            f"run_dir={run.label!r}",
            lambda start=start, end=end: bytes(run.fs.cat_file(path, start=start, end=end)),  # type: ignore[misc]
        )


def _parsed(name: str, blocks: Iterator[bytes]) -> tuple[_EventFile, list[str]]:
    """Return what a file holds, and what of it could not be read."""
    file = _EventFile(name.rpartition("/")[0], name)
    rest, skipped, broken = b"", 0, False
    for block in blocks:
        data = rest + block
        found = frames(data)
        skipped += _take(file, data, found)
        rest, broken = data[found.end :], found.broken
        if broken:
            break
    problems = []
    if skipped:
        problems.append(f"{skipped} damaged record{'s' * (skipped > 1)} left out")
    if broken:
        problems.append("what follows a damaged length was left out")
    elif rest:
        problems.append(f"the last record is incomplete ({len(rest)} bytes), as in a file that is being written")
    return file, problems


def _take(file: _EventFile, data: bytes, found: RecordFrames) -> int:
    """Keep the scalars of some records; return how many records were damaged."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - only where there are logs
    from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415

    short = found.lengths <= _SCALARS
    starts, lengths = found.starts[short], found.lengths[short]
    good = intact(data, starts, lengths)
    damaged = int(np.count_nonzero(~good))
    parse, known = Event.FromString, file.stretches[-1].points
    for start, stop in zip(starts[good].tolist(), (starts + lengths)[good].tolist(), strict=True):
        try:
            event = parse(data[start:stop])
        except DecodeError:
            damaged += 1
            continue
        if not file.began:
            file.began = event.wall_time
        values = event.summary.value
        for value in values:
            number = value.simple_value if value.HasField("simple_value") else _of_tensor(value)
            if number is None:
                continue
            points = known.get(value.tag)
            if points is None:
                points = known[value.tag] = array("q"), array("d")
            points[0].append(event.step)
            points[1].append(number)
        if not values and event.HasField("session_log"):
            file.marked |= event.session_log.status == _CHECKPOINT
            if event.session_log.status == _START:
                file.stretches.append(_Stretch(event.step))
                known = file.stretches[-1].points
    return damaged


def _of_tensor(value: Any) -> float | None:
    """Return the scalar that newer writers store as a tensor; None for anything else."""
    if not value.HasField("tensor") or value.metadata.plugin_data.plugin_name not in ("", "scalars"):
        return None
    tensor = value.tensor
    if tensor.dtype not in _FORMATS or any(each.size != 1 for each in tensor.tensor_shape.dim):
        return None
    held = tensor.float_val if tensor.dtype == _FLOAT else tensor.double_val
    if len(held) == 1:
        return float(held[0])
    try:
        return float(struct.unpack(_FORMATS[tensor.dtype], tensor.tensor_content)[0])
    except struct.error:
        return None


def _joined(folder: str, files: list[_EventFile], starts: _Starts) -> tuple[dict[str, LoggedCurve], int]:
    """Join the files of one folder, of which each hides what earlier ones say of the steps from its start on."""
    stretches: list[_Stretch] = []
    limits: list[int | None] = []
    before, marked = -np.inf, False
    for file in sorted(files, key=lambda each: (each.began, each.name)):
        begins = starts.since(float(before), file.began) if stretches and not marked else None
        before, marked = file.began, marked or file.marked
        for each in file.stretches:
            stretches.append(each)
            limits.append(begins if each.start is None else each.start)
            begins = None
    parts: dict[str, list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]] = {}
    hidden, hides_from = 0, None
    for stretch, limit in zip(reversed(stretches), reversed(limits), strict=True):
        for tag, (steps, values) in stretch.points.items():
            at, held = np.array(steps, np.int64), np.array(values, np.float64)
            if hides_from is not None:
                kept = at < hides_from
                hidden += int(np.count_nonzero(~kept))
                at, held = at[kept], held[kept]
            parts.setdefault(tag, []).append((at, held))
        if limit is not None:
            hides_from = limit if hides_from is None else min(hides_from, limit)
    curves = {}
    for tag, found in parts.items():
        name = f"{folder}/{tag}" if folder else tag
        at, held = (np.concatenate([part[side] for part in reversed(found)]) for side in (0, 1))
        if len(at):
            curves[name] = LoggedCurve(name, at, held)
    return curves, hidden
