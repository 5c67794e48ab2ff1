"""Which runs are listed, and in which order."""

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from pipeline.checkpoint.run_summary import RunCondition, RunSummary
from pipeline.commands.list_runs.fields import MISSING, bytes_of, known_names, text, value
from pipeline.errors import UserError, did_you_mean

_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FILTER = re.compile(r"\s*([^=!<>]+?)\s*(!=|<=|>=|==?|<|>)\s*(.*?)\s*", re.DOTALL)
_TIMES = ("started", "updated")
_STATES = [
    *(RunCondition.RUNNING, RunCondition.LOST, RunCondition.FAILED, RunCondition.PREEMPTED, RunCondition.INTERRUPTED),
    *(RunCondition.UNKNOWN, RunCondition.FINISHED),
]
"""In the order of `--sort state`: what may want attention comes first."""


@dataclass(frozen=True)
class Filter:
    """A condition on one value of a run, such as `state=failed` or `model.learning_rate>0.01`.

    Attributes:
        given: As the user wrote it.
        key: The name of the value.
        sign: How it is compared.
        wanted: With what.
    """

    given: str
    key: str
    sign: str
    wanted: str

    @staticmethod
    def parse(given: str) -> "Filter":
        """Return the condition that a user wrote.

        Raises:
            UserError: It is none.
        """
        match = _FILTER.fullmatch(given)
        if match is None:
            raise UserError(
                f"filter={given!r} must be <name><sign><value> with one of = != < <= > >=, such as state=failed or "
                "'metric<0.5'"
            )
        key, sign, wanted = match.groups()
        condition = Filter(given, key, "=" if sign == "==" else sign, wanted)
        if (
            condition.key == "state"
            and condition._is_plain
            and condition.wanted not in (states := [str(state) for state in RunCondition])
        ):
            raise UserError(
                f"filter={given!r}: state must be one of {', '.join(states)}{did_you_mean(condition.wanted, states)}"
            )
        if condition.sign in _ORDERS and condition._limit is None:
            what = "a date such as 2026-11-24 or 2026-11-24T12:30" if condition.key in _TIMES else "a number"
            raise UserError(f"filter={given!r}: {condition.wanted!r} must be {what}")
        return condition

    def matches(self, found: Any) -> bool:
        """Return whether a value fulfils the condition; what a run does not have differs from everything."""
        if self.sign in _ORDERS:
            return _is_ordered(found) and bool(_ORDERS[self.sign](_comparable(found), self._limit))
        return self._equals(found) == (self.sign == "=")

    @property
    def _is_plain(self) -> bool:
        return self.sign in ("=", "!=") and not any(each in self.wanted for each in "*?[")

    @property
    def _limit(self) -> float | None:
        """What is compared by order: a number, of bytes for a size, a share for a percentage, seconds for a date."""
        if self.key in _TIMES:
            try:
                return datetime.fromisoformat(self.wanted).timestamp()  # without a zone it is local time
            except (ValueError, OverflowError, OSError):
                return None
        if self.key == "size":
            return bytes_of(self.wanted)
        share = self.key == "goodput" and self.wanted.endswith("%")
        try:
            number = float(self.wanted.removesuffix("%") if share else self.wanted)
        except ValueError:
            return None
        return None if math.isnan(number) else number / 100 if share else number

    def _equals(self, found: Any) -> bool:
        if found is MISSING:
            return False
        if _is_ordered(found) and self._limit is not None:
            return bool(_comparable(found) == self._limit)
        return fnmatchcase(text(found), self.wanted) or text(found) == self.wanted


def selected(runs: Sequence[RunSummary], filters: Sequence[str], base: str) -> list[RunSummary]:
    """Return the runs that fulfil all conditions.

    Args:
        runs: All of them.
        filters: The conditions, as the user wrote them.
        base: The label of the URL that was listed.

    Raises:
        UserError: One is no condition, or is about what none of the runs has.
    """
    conditions = [Filter.parse(given) for given in filters]
    known = known_names(runs)
    for each in conditions:
        if runs and each.key not in known:
            raise UserError(
                f"filter={each.given!r}: no run here has {each.key!r}{did_you_mean(each.key, known)}. It must be one "
                "of the names that `runs --help` lists, a key of the configuration such as model.learning_rate, or a "
                "metric of an evaluation"
            )
    return [run for run in runs if all(each.matches(value(run, each.key, base)) for each in conditions)]


def _best(run: RunSummary) -> tuple[Any, ...]:
    """Return what sorts by the best checkpoint; values of different monitors are never compared."""
    if run.best is None:
        return True, "", "", 0.0
    return False, run.best.name, run.best.mode, -run.best.value if run.best.mode == "max" else run.best.value


def _descending(number: float | None) -> tuple[bool, float]:
    return number is None, -(number or 0.0)


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()


def _is_ordered(found: Any) -> bool:
    return isinstance(found, int | float | datetime) and not isinstance(found, bool)


def _comparable(found: Any) -> float:
    return found.timestamp() if isinstance(found, datetime) else found


SORTS: dict[str, Callable[[RunSummary], Any]] = {
    "started": lambda run: _descending(_seconds(run.started)),
    "updated": lambda run: _descending(_seconds(run.updated)),
    "name": lambda run: run.label,
    "state": lambda run: _STATES.index(run.state),
    "step": lambda run: _descending(run.step),
    "metric": _best,
    "goodput": lambda run: _descending(run.goodput),
    "size": lambda run: _descending(run.bytes),
}
"""By what runs are sorted: the newest, the best, the most and the largest come first; what has no value, last."""


def ordered(runs: Sequence[RunSummary], by: str) -> list[RunSummary]:
    """Return the runs in an order of SORTS; equals come the newest first, then by name."""
    newest_first = sorted(runs, key=lambda run: (SORTS["started"](run), run.label))
    return sorted(newest_first, key=SORTS[by])
