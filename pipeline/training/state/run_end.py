"""Whether training is over: what a run has done against what is asked for now.

Limits are compared with the step and epoch of the newest commit, and with the limit that had ended training there.
Whoever else ended it (EarlyStopping, max_time, a callback or a model that sets `trainer.should_stop`) is named in the
commit record, together with the part of the configuration that made it do so: while that is asked for unchanged,
training stays ended. Needs no torch.
"""

import json
from typing import Any

from pipeline.checkpoint.commit import CommitRecord

_LIMITS = ("max_steps", "max_epochs")
_LIGHTNINGS_MAX_EPOCHS = 1000
"""Where neither epochs, nor steps, nor time are limited."""


def stop_request(by: str, resolved: dict[str, Any]) -> dict[str, Any]:
    """Return who asked training to stop, and the part of the configuration that made it do so, in JSON's types.

    Args:
        by: Name of the class that set `trainer.should_stop`, "" where it is not known.
        resolved: The configuration of the fit.
    """
    trainer, model = resolved.get("trainer") or {}, resolved.get("model")
    callbacks = trainer.get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    asked: dict[str, Any] = {"callbacks": [each for each in callbacks if by == _class_name(each)]}
    if by == "Timer":
        asked["max_time"] = trainer.get("max_time")
    elif not asked["callbacks"]:  # a callback that the model configures, the model itself, or a function of the user's
        asked = {"model": model} if by == _class_name(model) else {"callbacks": callbacks, "model": model}
    return {"by": by, "asked": json.loads(json.dumps(asked, default=str))}


def limit_reached(name: str, limit: int) -> dict[str, Any]:
    """Return in the form of `stop_request` that a limit of the trainer has ended training."""
    return {"by": name, "asked": {name: limit}}


def is_still_asked(request: dict[str, Any] | None, resolved: dict[str, Any]) -> bool:
    """Return whether what made training stop, other than a limit, is asked for unchanged."""
    if request is None or request["by"] in _LIMITS:
        return False
    return stop_request(str(request["by"]), resolved) == request


def why_over(record: CommitRecord, resolved: dict[str, Any]) -> str:
    """Return why nothing is left to train after a commit, as a person reads it; "" where something is.

    Args:
        record: The newest good one.
        resolved: The configuration that is asked for.
    """
    trainer = resolved.get("trainer") or {}
    limits = {name: trainer.get(name) for name in _LIMITS}
    if limits["max_epochs"] is None and limits["max_steps"] in (None, -1) and trainer.get("max_time") is None:
        limits["max_epochs"] = _LIGHTNINGS_MAX_EPOCHS
    ended = record.ended or {"by": None, "asked": {}}
    # StochasticWeightAveraging may add an epoch of its own after the last one.
    added = record.ended is None and "StochasticWeightAveraging" in str(trainer.get("callbacks"))
    for name, done in (("max_steps", record.step), ("max_epochs", record.epoch - added)):
        limit = limits[name]
        # The rest of an epoch may have been skipped, so that its end has no step of its own.
        if limit is not None and limit != -1 and max(done, ended["asked"].get(name, 0)) >= limit:
            return f"{name}={limit} is reached"
    least = (record.epoch, trainer.get("min_epochs")), (record.step, trainer.get("min_steps"))
    if not is_still_asked(record.ended, resolved) or any(done < (wanted or 0) for done, wanted in least):
        return ""
    return f"{ended['by'] or 'a callback'} ended it; to train on, change its arguments or leave it out"


def _class_name(entry: Any) -> str:
    """Return the name of the class that a part of the configuration asks for, "" for any other value."""
    path = entry.get("class_path") if isinstance(entry, dict) else entry
    return path.rpartition(".")[2] if isinstance(path, str) else ""
