"""How a cost grows: the simplest law that measured costs follow, out of a few."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

GROWTHS: Mapping[str, Callable[[float], float]] = {
    "constant": lambda _: 0.0,
    "log n": math.log2,
    "linear": lambda n: n,
    "n log n": lambda n: n * math.log2(n),
    "quadratic": lambda n: n * n,
    "cubic": lambda n: n**3,
}
"""From the simplest one on."""
_NOISE = 0.15
"""Root of the mean square of relative errors below which laws are taken to be equally good."""
_NO_BETTER = 1.5
"""A law is kept as long as no other one has an error that is smaller by this factor."""


@dataclass(frozen=True)
class Fit:
    """A law: `base` + `factor` x its function of the size.

    Attributes:
        growth: Its name, one of `GROWTHS`.
        base: At least 0.
        factor: At least 0.
        error: Root of the mean square of relative errors.
    """

    growth: str
    base: float
    factor: float
    error: float

    def at(self, size: float) -> float:
        """Return the cost at a size."""
        return self.base + self.factor * GROWTHS[self.growth](size)


def fit(sizes: Sequence[float], costs: Sequence[float]) -> Fit:
    """Return the simplest law that explains some costs about as well as any other does.

    Relative errors are what is made small: a microsecond counts at small sizes as a second does at large ones. Only
    the upper half of the decades counts, if that are three sizes at least: small ones have costs of their own.

    Args:
        sizes: At least 1 each.
        costs: More than 0 each.
    """
    middle = math.sqrt(min(sizes) * max(sizes))
    upper = [(size, cost) for size, cost in zip(sizes, costs, strict=True) if size >= middle]
    known = np.array(upper if len(upper) > 2 else list(zip(sizes, costs, strict=True)), float)
    found = [_fit(growth, known[:, 0], known[:, 1]) for growth in GROWTHS]
    bound = max(_NOISE, _NO_BETTER * min(each.error for each in found))
    return next(each for each in found if each.error <= bound)


def _fit(growth: str, sizes: npt.NDArray[np.float64], costs: npt.NDArray[np.float64]) -> Fit:
    grown = np.array([GROWTHS[growth](size) for size in sizes])
    columns = np.stack([1 / costs, grown / costs])
    ways: list[tuple[int, ...]] = [(0,)] if growth == "constant" else [(0,), (1,), (0, 1)]
    best = Fit(growth, 0.0, 0.0, math.inf)
    for way in ways:
        solved = np.linalg.lstsq(columns[list(way)].T, np.ones(len(costs)), rcond=None)[0]
        base, factor = (float(dict(zip(way, solved, strict=True)).get(column, 0.0)) for column in (0, 1))
        error = float(np.sqrt(np.mean((base * columns[0] + factor * columns[1] - 1) ** 2)))
        if min(base, factor) >= 0 and error < best.error:
            best = Fit(growth, base, factor, error)
    return best
