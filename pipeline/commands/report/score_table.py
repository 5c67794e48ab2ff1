"""The columns of `evaluation/scores.csv` in numbers, and the pictures that an evaluation has left."""

import csv
import io
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.commands.report.formats import finite
from pipeline.run.run_dir import PICTURES, SCORES, RunDir

_BINS = 60
_COLUMNS = 12
_BYTES = 256 << 20
"""Of the table, which are read at most."""
_PICTURES = 16
_PICTURE_BYTES = 1 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
QUANTILES = {"min": 0.0, "1 %": 0.01, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "99 %": 0.99, "max": 1.0}


@dataclass(frozen=True)
class ScoreDistribution:
    """One column of the table.

    Attributes:
        name: Of the column.
        samples: Rows with a finite number.
        others: Rows without one.
        mean: Of those numbers.
        quantiles: By the names of QUANTILES.
        edges: (b + 1,) Bounds of the bins.
        counts: (b,) Samples in each bin.
    """

    name: str
    samples: int
    others: int
    mean: float
    quantiles: dict[str, float]
    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class SamplePicture:
    """A test sample at one end of the scores: its picture as a data URL."""

    end: str
    index: int
    score: float
    url: str


@dataclass(frozen=True)
class SamplePictures:
    """The test samples at both ends of a column."""

    column: str = ""
    pictures: tuple[SamplePicture, ...] = ()

    def of(self, end: str) -> list[SamplePicture]:
        """Return those of one end, `lowest` or `highest`."""
        return [each for each in self.pictures if each.end == end]


def read_scores(run: RunDir) -> tuple[list[ScoreDistribution], list[str]]:
    """Return the distribution of each column of numbers, and what was left out, in words."""
    length = run.size(SCORES)
    if not length:
        return [], []
    left_out = []
    data = run.read(SCORES) if length <= _BYTES else _head(run)
    if length > _BYTES:
        left_out.append(f"{SCORES} has {length} bytes; the distributions are of its first {_BYTES}")
    names, table = _table(data or b"")
    if len(names) > _COLUMNS + 1:
        left_out.append(f"{SCORES} has {len(names) - 1} columns; the first {_COLUMNS} are shown")
    columns = zip(names[1 : _COLUMNS + 1], table.T[1:], strict=False)
    return [found for name, values in columns if (found := _distribution(name, values)) is not None], left_out


def _head(run: RunDir) -> bytes:
    data = bytes(run.fs.cat_file(f"{run.path}/{SCORES}", start=0, end=_BYTES))
    return data[: data.rfind(b"\n") + 1]


def _table(data: bytes) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Return the names of the columns, and their numbers (rows, columns), with NaN for what is none."""
    text = data.decode("utf-8", "replace")
    names = next(csv.reader(io.StringIO(text)), [])
    if not names:
        return [], np.empty((0, 0))
    start = text.index("\n") + 1 if "\n" in text else len(text)
    if not text[start:].strip():
        return names, np.empty((0, len(names)))
    try:
        found = np.loadtxt(io.StringIO(text[start:]), delimiter=",", ndmin=2, comments=None)
    except ValueError:  # empty cells, truth values, or another program's table
        found = np.array(list(_rows(text, len(names))), np.float64)
    if found.size == 0 or found.ndim != 2 or found.shape[1] != len(names):
        return names, np.empty((0, len(names)))
    return names, found


def _rows(text: str, width: int) -> Iterator[list[float]]:
    rows = csv.reader(io.StringIO(text))
    next(rows, None)
    yield from ([_cell(cell) for cell in row] for row in rows if len(row) == width)


def _cell(text: str) -> float:
    if text in ("True", "False"):
        return float(text == "True")
    try:
        return float(text)
    except ValueError:
        return np.nan


def _distribution(name: str, values: npt.NDArray[np.float64]) -> ScoreDistribution | None:
    good = values[np.isfinite(values)]
    if not len(good):
        return None
    counts, edges = np.histogram(good, bins=min(_BINS, max(1, len(np.unique(good[:1000])))))
    quantiles = dict(zip(QUANTILES, np.quantile(good, list(QUANTILES.values())).tolist(), strict=True))
    return ScoreDistribution(
        *(name, len(good), len(values) - len(good), float(good.mean()), quantiles, edges.tolist(), counts.tolist())
    )


def read_pictures(run: RunDir) -> SamplePictures:
    """Return the pictures that the list in `evaluation/pictures` names, without those that are no PNG."""
    listed = run.read_json(f"{PICTURES}/pictures.json")
    if listed is None:
        return SamplePictures()
    found = []
    for end in ("lowest", "highest"):
        entries = listed.get(end)
        for entry in entries[:_PICTURES] if isinstance(entries, list) else []:
            if (picture := _picture(run, end, entry)) is not None:
                found.append(picture)
    return SamplePictures(str(listed.get("column")), tuple(found))


def _picture(run: RunDir, end: str, entry: Any) -> SamplePicture | None:
    if not isinstance(entry, dict):
        return None
    name, index, score = entry.get("file"), entry.get("index"), finite(entry.get("score"))
    if not isinstance(name, str) or "/" in name or not isinstance(index, int) or score is None:
        return None
    data = run.read(f"{PICTURES}/{name}") or b""
    if not data.startswith(_PNG) or len(data) > _PICTURE_BYTES:
        return None
    return SamplePicture(end, index, score, f"data:image/png;base64,{b64encode(data).decode()}")
