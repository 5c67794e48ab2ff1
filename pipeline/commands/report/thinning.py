"""Curves of any length as some thousand points that show every peak and every gap."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CurveDigest:
    """What is said of a curve in words, from all of its points.

    Attributes:
        points: Their number.
        last: The last finite value, and its step.
        least: The least finite value, and its step.
        greatest: The greatest finite value, and its step.
        not_finite: Points that are NaN or infinite.
    """

    points: int
    last: tuple[float, float] | None
    least: tuple[float, float] | None
    greatest: tuple[float, float] | None
    not_finite: int

    @staticmethod
    def of(steps: npt.NDArray[np.generic], values: Numbers) -> "CurveDigest":
        """Return the digest of a curve, (n,) steps and values."""
        good = np.flatnonzero(np.isfinite(values))
        if not len(good):
            return CurveDigest(len(values), None, None, None, len(values))

        def at(row: int) -> tuple[float, float]:
            return float(values[row]), float(np.asarray(steps[row], np.float64))

        least, greatest = good[np.argmin(values[good])], good[np.argmax(values[good])]
        return CurveDigest(len(values), at(int(good[-1])), at(int(least)), at(int(greatest)), len(values) - len(good))


def thinned(steps: npt.NDArray[np.generic], values: Numbers, most: int) -> tuple[list[int | float], list[float | None]]:
    """Return at most about `most` points of a curve.

    The points are put into buckets of as many points each, in their order; each bucket keeps its least and its greatest
    value, so that no peak is lost, and one gap if any value in it is NaN or infinite. First and last point are kept.

    Args:
        steps: (n,)
        values: (n,)
        most: At least 4.

    Returns:
        Steps, and values with None for a gap.
    """
    kept = _kept(values, most) if len(values) > most else np.arange(len(values))
    good = np.isfinite(values[kept])
    shown = [float(value) if fine else None for value, fine in zip(values[kept].tolist(), good, strict=True)]
    return steps[kept].tolist(), shown


def _kept(values: Numbers, most: int) -> npt.NDArray[np.int64]:
    bounds = np.linspace(0, len(values), max(most // 3, 1) + 1).astype(np.int64)
    starts = bounds[:-1][np.diff(bounds) > 0]
    good = np.isfinite(values)
    bucket = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(values))))
    chosen = [np.array([0, len(values) - 1])]
    for filled, best in ((np.where(good, values, np.inf), np.minimum), (np.where(good, values, -np.inf), np.maximum)):
        peaks = best.reduceat(filled, starts)
        chosen.append(_first_of_each(bucket, np.flatnonzero(good & (filled == peaks[bucket]))))
    chosen.append(_first_of_each(bucket, np.flatnonzero(~good)))
    return np.unique(np.concatenate(chosen))


def _first_of_each(bucket: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the first of some rows in each bucket."""
    _, first = np.unique(bucket[rows], return_index=True)
    return rows[first]
