"""MLflow and Weights & Biases: one run of theirs for one run of ours, across attempts and stages.

A logger of theirs is configured by class path, as in Lightning's documentation. Which run of theirs it logs to is
noted in the run directory at its first use; later attempts and evaluations go there. An id that the user gives wins.
"""

import importlib
import logging
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.run.run_dir import LOGS, RunDir
from pipeline.run.storage_errors import storage_error

log = logging.getLogger(__name__)

LOGGERS = f"{LOGS}/loggers.json"
_ID = {"MLFlowLogger": "run_id", "WandbLogger": "id"}
"""By class: which argument of its constructor names a run."""
_CHOSEN_HERE = ("id",)
"""Arguments that take any new id; others name a run that exists."""

Ids = list[list[str]]
"""Of each logger, in the order in which they are configured: its class path and the id of its run."""


def configured(loggers: Any) -> list[Any]:
    """Return those among configured loggers whose runs have ids.

    Args:
        loggers: The value of `trainer.logger`: one or several mappings with `class_path` and `init_args`, or none.
    """
    each = loggers if isinstance(loggers, list) else [loggers]
    return [one for one in each if _class_path(one).rpartition(".")[2] in _ID]


def known_ids(run: RunDir) -> Ids:
    """Return which runs of theirs belong to a run."""
    found = (run.read_json(LOGGERS) or {}).get("loggers")
    pairs = found if isinstance(found, list) else []
    return [
        [str(each["class_path"]), str(each["id"])]
        for each in pairs
        if isinstance(each, Mapping) and {"class_path", "id"} <= each.keys()
    ]


def chosen_ids(run: RunDir, loggers: Any) -> Ids:
    """Return which runs of theirs a fit logs to: those known, and new ones where an id can be chosen.

    Args:
        run: The run directory.
        loggers: The value of `trainer.logger`.
    """
    if not configured(loggers):
        return []
    ids = known_ids(run)
    for entry, known in _paired(configured(loggers), list(ids)):
        argument = _argument(_class_path(entry))
        if known is None and argument in _CHOSEN_HERE and not _given(entry):
            ids.append([_class_path(entry), uuid.uuid4().hex[:12]])
    return ids


def set_ids(loggers: Any, ids: Ids) -> None:
    """Have configured loggers log to these runs, unless the user names others.

    Args:
        loggers: The value of `trainer.logger`, changed in place.
        ids: See `chosen_ids`.
    """
    for entry, known in _paired(configured(loggers), ids):
        if known is not None and not _given(entry):
            entry["init_args"][_argument(_class_path(entry))] = known


def note_ids(run: RunDir, loggers: Any, built: list[Any]) -> None:
    """Note in a run which runs of theirs its loggers log to. MLflow's server names one when it is asked for.

    Args:
        run: The run directory.
        loggers: The value of `trainer.logger`.
        built: The trainer's loggers.
    """
    ours = [each for each in built if type(each).__name__ in _ID]
    entries = configured(loggers)
    if not entries or len(entries) != len(ours):
        return
    ids = [
        [_class_path(entry), str(each.run_id if _argument(_class_path(entry)) == "run_id" else each.version)]
        for entry, each in zip(entries, ours, strict=True)
    ]
    if ids != known_ids(run):
        run.write_json(LOGGERS, {"loggers": [{"class_path": path, "id": known} for path, known in ids]})


def log_to_trackers(run: RunDir, loggers: Any, metrics: Mapping[str, float | None], step: int) -> None:
    """Log the metrics of an evaluation in the runs of theirs that the training logged to.

    What cannot be logged is a warning: the receipt holds the metrics.

    Args:
        run: That was evaluated.
        loggers: The value of `trainer.logger` that it was trained with.
        metrics: By name; None for a number that is not finite.
        step: Of the checkpoint.
    """
    found = {name: value for name, value in metrics.items() if value is not None}
    for entry, known in _paired(configured(loggers), known_ids(run)):
        path = _class_path(entry)
        if known is None or not found:
            continue
        try:
            module, _, name = path.rpartition(".")
            arguments = {**(entry.get("init_args") or {}), **(entry.get("dict_kwargs") or {}), _argument(path): known}
            logger = getattr(importlib.import_module(module), name)(**arguments)
            logger.log_metrics(found, step=step)
            logger.finalize("success")
            if hasattr(logger.experiment, "finish"):
                logger.experiment.finish()
        except Exception as error:  # noqa: BLE001 - every tracker has errors of its own
            log.warning("the test metrics are not logged by %s: %s", name, storage_error(error))


def _paired(entries: list[Any], ids: Ids) -> Iterator[tuple[Any, str | None]]:
    """Yield each configured logger with the id of its run: the nth of a class has the nth id of that class."""
    left = list(ids)
    for entry in entries:
        match = next((pair for pair in left if pair[0] == _class_path(entry)), None)
        if match is not None:
            left.remove(match)
        yield entry, None if match is None else match[1]


def _class_path(entry: Any) -> str:
    path = entry.get("class_path") if hasattr(entry, "get") else None
    return path if isinstance(path, str) else ""


def _argument(class_path: str) -> str:
    return _ID[class_path.rpartition(".")[2]]


def _given(entry: Any) -> bool:
    """Return whether the user names a run."""
    arguments = entry.get("init_args") or {}
    return arguments.get(_argument(_class_path(entry))) is not None or arguments.get("version") is not None
