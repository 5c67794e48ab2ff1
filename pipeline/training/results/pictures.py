"""Pictures of the test samples with the lowest and the highest scores, where the dataset can show its samples.

A dataset offers `picture(index)`, see `pipeline.data.pictures`. What goes wrong in it is a warning, never the end of an
evaluation.
"""

import logging
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.data.pictures import Pixels, has_pictures, pixels_of, png
from pipeline.errors import in_one_line
from pipeline.run.run_dir import PICTURES, RunDir

log = logging.getLogger(__name__)

LIST = f"{PICTURES}/pictures.json"
"""Which pictures there are, written last."""

_SHOWN = 8
"""Samples of each end."""
_LONGEST = 256
"""Pixels of the longer side; larger pictures are thinned out."""


class ScoreColumn(NamedTuple):
    """One number of each sample.

    Attributes:
        name: Of the column of `scores.csv`.
        indices: (n,) Of the samples.
        values: (n,) Their scores.
    """

    name: str
    indices: npt.NDArray[np.int64]
    values: npt.NDArray[Any]


def clear_pictures(run: RunDir) -> None:
    """Remove what an earlier evaluation has left."""
    for name in sorted(run.names(PICTURES), key=lambda each: not each.endswith(".json")):
        if name.endswith((".json", ".png")):
            run.remove(f"{PICTURES}/{name}")


def write_pictures(run: RunDir, dataset: Any, column: ScoreColumn) -> None:
    """Write the pictures of the samples at both ends of a column, and a list of them.

    Args:
        run: Where to.
        dataset: Of the samples. Nothing is written for one that offers no pictures.
        column: By which they are chosen; what is not finite is left out.
    """
    if not has_pictures(dataset):
        return
    ends = _ends(column)
    listed: dict[str, list[dict[str, Any]]] = {end: [] for end in ends}
    try:
        pictures = {
            f"{end}-{place}": (end, index, score, _png(pixels_of(dataset, index)))
            for end, chosen in ends.items()
            for place, (index, score) in enumerate(chosen, start=1)
        }
    except Exception as error:  # noqa: BLE001 - it is the user's own code
        log.warning("no pictures of test samples: picture() of the dataset failed: %s", in_one_line(error))
        return
    for name, (end, index, score, data) in pictures.items():
        run.write(f"{PICTURES}/{name}.png", data)
        listed[end].append({"index": index, "score": score, "file": f"{name}.png"})
    if pictures:
        run.write_json(LIST, {"column": column.name, **listed})


def _ends(column: ScoreColumn) -> dict[str, list[tuple[int, float]]]:
    """Return index and score of the samples at both ends, the most extreme first, and none at both."""
    values = column.values.astype(np.float64)
    finite = np.flatnonzero(np.isfinite(values))
    order = finite[np.argsort(values[finite], kind="stable")]
    lowest = order[: min(_SHOWN, (len(order) + 1) // 2)]
    highest = order[len(lowest) :][-_SHOWN:][::-1]
    return {
        end: [(int(column.indices[row]), float(values[row])) for row in rows]
        for end, rows in (("lowest", lowest), ("highest", highest))
    }


def _png(pixels: Pixels) -> bytes:
    """Return a picture as PNG, thinned out if it is large."""
    step = math.ceil(max(pixels.shape[:2]) / _LONGEST)
    return png(pixels[::step, ::step])
