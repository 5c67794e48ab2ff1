"""The table of runs, as wide as it is read: whole in a pipe; on a terminal the least important columns are left out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.checkpoint.run_summary import RunCondition, RunSummary, differing_keys
from pipeline.commands.list_runs import fields
from pipeline.commands.list_runs.fields import ago, name, size, text, value
from pipeline.commands.table import table

_LEFT = ("name", "state", "reason")
_IMPORTANT = ("name", "state", "metric", "progress", "started", "", "goodput", "size", "reason")
"""The columns, those that stay longest first; "" stands for the keys in which configurations differ."""
_DEFAULT = ("name", "state", "progress", "metric", "", "goodput", "size", "started", "reason")
"""The columns in their order."""
_LEAST = {"name": 24, "reason": 24, "": 10}
"""Characters to which the cells of a column may be cut."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: What it shows, as `--columns` names it.
        title: Above it.
        cells: One for each run.
        short: The same in fewer characters, where there is a shorter way to say it.
    """

    key: str
    title: str
    cells: Sequence[str]
    short: Sequence[str] | None = None

    @property
    def width(self) -> int:
        """Of the widest cell or the title, in characters."""
        return max(map(len, [self.title, *self.cells]))

    @property
    def least(self) -> int:
        """To how many characters it may be cut; its width, where what is left would say little."""
        cuttable = self.key in _LEAST or self.key not in _IMPORTANT
        return min(self.width, _LEAST.get(self.key, _LEAST[""])) if cuttable else self.width

    def cut(self, width: int) -> "Column":
        """Return the column with what is wider cut: in the middle of a name, for names often differ at their end."""
        tail = (width - 1) // 2 if self.key == "name" else 0

        def one(cell: str) -> str:
            return cell if len(cell) <= width else f"{cell[: width - 1 - tail]}…{cell[len(cell) - tail :]}"

        return replace(self, title=one(self.title), cells=[one(cell) for cell in self.cells])


def columns(runs: Sequence[RunSummary], base: str, wanted: Sequence[str] | None = None) -> list[Column]:
    """Return the columns of a table.

    Args:
        runs: One for each line.
        base: The label of the URL that was listed.
        wanted: Which, by their names; None: what matters of most runs, and the keys in which they differ.
    """
    differing = differing_keys(run.config for run in runs)
    keys = wanted or [key for each in _DEFAULT for key in ([each] if each else differing)]
    titles = _titles([key for key in keys if key not in _IMPORTANT and key not in fields.FIELDS])
    found = [_column(key, runs, base, titles.get(key, key)) for key in keys]
    return [column for column in found if wanted or column.key == "name" or any(column.cells)]


def lines(found: Sequence[Column], width: int | None, may_drop: bool = True) -> list[str]:
    """Return the table, a line each, and what it leaves out.

    Args:
        found: The columns.
        width: Of the terminal in characters; None: as wide as it is.
        may_drop: Whether columns may be left out.
    """
    fitting, dropped = list(found), list[str]()
    if width is not None and _total(column.width for column in fitting) > width:
        fitting = [column if column.short is None else replace(column, cells=column.short) for column in fitting]
        while may_drop and len(fitting) > 1 and _total(column.least for column in fitting) > width:
            least = max(fitting, key=lambda column: (_importance(column.key), fitting.index(column)))
            fitting.remove(least)
            dropped.append(least.key)
        fitting = _shrunk(fitting, width)
    rows = [[column.title for column in fitting], *zip(*(column.cells for column in fitting), strict=True)]
    left = [column.title for column in fitting if column.key in _LEFT]
    shown = table(rows, left)
    if dropped:
        order = [column.key for column in found if column.key in dropped]
        shown += [f"not shown at this width: {', '.join(order)} (--columns chooses, a pipe shows all)"]
    return shown


def _shrunk(found: list[Column], width: int) -> list[Column]:
    """Return columns with the widest of those that may be cut, until all fit or none may be cut any more."""
    widths = [column.width for column in found]
    while _total(widths) > width:
        spare = [at if at > column.least else 0 for column, at in zip(found, widths, strict=True)]
        if not any(spare):
            break
        widths[spare.index(max(spare))] -= 1
    return [column.cut(at) for column, at in zip(found, widths, strict=True)]


def _total(widths: Iterable[int]) -> int:
    each = list(widths)
    return sum(each) + 2 * (len(each) - 1)


def _importance(key: str) -> int:
    return _IMPORTANT.index(key if key in _IMPORTANT else "")


def _titles(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest end of each dotted key that no other one has."""
    ends = {key: [key.split(".", skip)[-1] for skip in range(key.count("."), -1, -1)] for key in keys}
    taken = ["progress", *fields.FIELDS]
    return {
        key: next(
            (
                end
                for end in of_key
                if end not in taken and not any(end in others for other, others in ends.items() if other != key)
            ),
            key,
        )
        for key, of_key in ends.items()
    }


def _column(key: str, runs: Sequence[RunSummary], base: str, title: str) -> Column:
    if key == "name":
        return Column(key, key, [text(name(run, base)) for run in runs])
    if key == "metric":
        monitors = {run.best.name for run in runs if run.best is not None}
        if len(monitors) == 1:
            return Column(key, text(monitors.pop()), [_metric(run).rpartition(" ")[2] for run in runs])
    if key in ("started", "updated"):
        times = [getattr(run, key) for run in runs]
        full = ["" if time is None else f"{text(time)} ({ago(time)})" for time in times]
        return Column(key, key, full, ["" if time is None else ago(time) for time in times])
    if key == "progress":
        return Column(key, key, [_progress(run) for run in runs], [_progress(run).partition(",")[0] for run in runs])
    if key in _CELLS:
        return Column(key, key, [_CELLS[key](run) for run in runs])
    found = [value(run, key, base) for run in runs]
    return Column(key, title, [_number(each) if isinstance(each, float) else text(each) for each in found])


def _state(run: RunSummary) -> str:
    failed = run.state is RunCondition.FAILED and run.status is not None
    return f"{run.state} ({run.status})" if failed else str(run.state)


def _progress(run: RunSummary) -> str:
    if run.max_epochs is not None and run.max_steps is None and run.epoch is not None:
        return f"epoch {run.epoch}/{run.max_epochs}, step {run.step}"
    if run.step is None:
        return ""
    return f"step {run.step}/{run.max_steps}" if run.max_steps is not None else f"step {run.step}"


def _metric(run: RunSummary) -> str:
    return "" if run.best is None else f"{text(run.best.name)} {_number(run.best.value)}"


def _reason(run: RunSummary) -> str:
    """Return why a run ended, where that is more than its state says."""
    return "" if run.reason is None or run.state is RunCondition.FINISHED else text(run.reason)


def _number(found: float) -> str:
    return f"{found:.6g}"


_CELLS: Mapping[str, Callable[[RunSummary], str]] = {
    "state": _state,
    "metric": _metric,
    "goodput": lambda run: "" if run.goodput is None else f"{100 * run.goodput:.1f} %",
    "size": lambda run: size(run.bytes),
    "reason": _reason,
}
