"""Which values the trials of a sweep have: a grid, random draws, or what Optuna is to choose from.

What a trial has depends on nothing but the space, the seed and the number of the trial, so that a sweep which is
continued asks the same trials. (With Optuna also on the results until then.)
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from pipeline.errors import UserError, did_you_mean

Value = str | int | float

_KEY = re.compile(r"[A-Za-z_][\w.]*")
_OPEN, _CLOSE, _QUOTES = "[{(", "]})", "'\""
_NUMBERS: dict[str, Callable[[str], Value]] = {"uniform": float, "log": float, "int": int, "intlog": int}
_KINDS = (*_NUMBERS, "choice")
_EXAMPLES = "uniform:0:0.5, log:1e-5:1e-1, int:1:8, intlog:16:1024 or choice:relu,gelu"


class ValueRange(NamedTuple):
    """What a value is drawn from.

    Attributes:
        kind: `uniform` and `log` for numbers, `int` and `intlog` for whole ones, `choice`.
        of: The least and the greatest value, both included; or the choices.
    """

    kind: str
    of: tuple[Value, ...]

    @property
    def logarithmic(self) -> bool:
        """Whether each factor is as likely as any other, and not each difference."""
        return self.kind in ("log", "intlog")

    def draw(self, numbers: random.Random) -> Value:
        """Return a random value."""
        if self.kind == "choice":
            return numbers.choice(self.of)
        low, high = (float(each) for each in self.of)
        whole = self.kind in ("int", "intlog")
        if whole:  # each whole number is as wide as any other
            low, high = low - 0.5, high + 0.5
        drawn = (
            math.exp(numbers.uniform(math.log(low), math.log(high))) if self.logarithmic else numbers.uniform(low, high)
        )
        return min(max(round(drawn), int(self.of[0])), int(self.of[1])) if whole else drawn


@dataclass(frozen=True)
class SweepSpace:
    """What a sweep tries.

    Attributes:
        grid: The values of each key, of which all combinations are tried.
        random: What the values of further keys are drawn from.
        optuna: What Optuna chooses the values of keys from.
        trials: How many there are.
        seed: Of random draws and of Optuna's sampler.
    """

    grid: Mapping[str, Sequence[str]]
    random: Mapping[str, ValueRange]
    optuna: Mapping[str, ValueRange]
    trials: int
    seed: int

    @staticmethod
    def parse(
        grid: Sequence[str], random: Sequence[str], optuna: Sequence[str], trials: int | None, seed: int
    ) -> "SweepSpace":
        """Return what a command line asks for.

        Args:
            grid: `key=value,value`, for each key.
            random: `key=range`, for each key, see `ValueRange`.
            optuna: The same.
            trials: How many; None for all of a grid.
            seed: Of the draws.

        Raises:
            UserError: All that is wrong with it.
        """
        problems: list[str] = []
        grids = dict(_keyed("grid", grid, _grid_values, problems))
        draws = dict(_keyed("random", random, _range, problems))
        chosen = dict(_keyed("optuna", optuna, _range, problems))
        given = [each.partition("=")[0] for each in (*grid, *random, *optuna)]
        problems += [
            f"{key} is given {given.count(key)} times: name each key once"
            for key in dict.fromkeys(given)
            if given.count(key) > 1
        ]
        problems += _wrong_combination(grids, bool(random), bool(optuna), bool(given), trials)
        if problems:
            raise UserError(*problems)
        return SweepSpace(grids, draws, chosen, trials or math.prod(map(len, grids.values())), seed)

    @property
    def keys(self) -> list[str]:
        """The keys that differ between trials, in the order in which they were given."""
        return [*self.grid, *self.random, *self.optuna]

    def values(self, trial: int) -> dict[str, Value]:
        """Return what a trial has of the grid, which the trials go through in turn, and of the random draws.

        Args:
            trial: Its number, from 1.
        """
        points = list(product(*self.grid.values()))
        found: dict[str, Value] = dict(zip(self.grid, points[(trial - 1) % len(points)], strict=True))
        for key, each in self.random.items():
            # A generator for each, so that another key more changes no value of these.
            found[key] = each.draw(random.Random(f"{self.seed} {trial} {key}"))  # noqa: S311 - no secret
        return found

    def extremes(self) -> Iterator[tuple[str, Value]]:
        """Yield each key with every value of a grid or a choice, and with the ends of each range."""
        for key, each in self.grid.items():
            yield from ((key, value) for value in each)
        for key, of in {**self.random, **self.optuna}.items():
            yield from ((key, value) for value in of.of)

    def as_dict(self) -> dict[str, Any]:
        """Return the space in JSON's types."""
        ranges = ((name, getattr(self, name)) for name in ("random", "optuna"))
        return {
            "grid": {key: list(values) for key, values in self.grid.items()},
            **{name: {key: [of.kind, *of.of] for key, of in found.items()} for name, found in ranges},
            "trials": self.trials,
            "seed": self.seed,
        }


def flags_of(values: Mapping[str, Value]) -> list[str]:
    """Return the flags of fit for the values of a trial."""
    return [f"--{key}={value}" for key, value in values.items()]


def _wrong_combination(
    grid: Mapping[str, Sequence[str]], random: bool, optuna: bool, any_given: bool, trials: int | None
) -> Iterator[str]:
    if not any_given:
        yield "nothing to try: give --grid key=value,value, --random key=range or --optuna key=range"
    if optuna and (grid or random):
        yield "--optuna chooses the values of all keys: give it those of --grid (key=choice:a,b) and --random, too"
    if trials is not None and trials < 1:
        yield f"trials={trials} must be >= 1"
    if trials is None and (random or optuna):
        yield f"--{'optuna' if optuna else 'random'} has no end of its own: say how many by --trials"
    points = math.prod(map(len, grid.values()))
    if grid and not random and not optuna and trials is not None and trials != points:
        yield f"trials={trials}: the grid has {points}, which are all tried; leave --trials out"


def _keyed(
    flag: str, given: Sequence[str], parse: Callable[[str], Any], problems: list[str]
) -> Iterator[tuple[str, Any]]:
    for each in given:
        key, equals, text = each.partition("=")
        try:
            if not equals or not _KEY.fullmatch(key):
                raise ValueError("expected key=..., with a key that fit has as a flag, such as model.learning_rate")
            yield key, parse(text)
        except ValueError as error:
            problems.append(f"{flag}={each!r}: {error}")


def _grid_values(text: str) -> list[str]:
    """Return the values between commas, but for those within brackets and quotes.

    Raises:
        ValueError: One is empty or there twice, or a bracket or quote is not closed.
    """
    values, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in _QUOTES:
            quote = sign
        depth += 0 if quote else (sign in _OPEN) - (sign in _CLOSE)
        if sign == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += sign
    if depth or quote:
        raise ValueError("a bracket or a quote is not closed")
    values = [value.strip() for value in values]
    if "" in values:
        raise ValueError("a value is empty; write key=0.1,0.01")
    if twice := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
        raise ValueError(f"{', '.join(twice)} is there more than once")
    return values


def _range(text: str) -> ValueRange:
    """Return what `uniform:0:0.5` says.

    Raises:
        ValueError: It is no range.
    """
    kind, colon, of = text.partition(":")
    if kind not in _KINDS or not colon:
        raise ValueError(f"expected {_EXAMPLES}{did_you_mean(kind, _KINDS)}")
    if kind == "choice":
        return ValueRange(kind, tuple(_grid_values(of)))
    parts = of.split(":")
    try:
        low, high = (_NUMBERS[kind](part) for part in parts)
    except ValueError:
        what = "whole numbers" if kind.startswith("int") else "numbers"
        raise ValueError(f"{kind} takes two {what}, such as {_EXAMPLES.split(', ')[_KINDS.index(kind)]}") from None
    if not (math.isfinite(float(low)) and math.isfinite(float(high)) and float(low) < float(high)):
        raise ValueError(f"{low} must be less than {high}")
    if kind in ("log", "intlog") and float(low) <= 0:
        raise ValueError(f"{low} must be > 0 on a logarithmic scale")
    return ValueRange(kind, (low, high))
