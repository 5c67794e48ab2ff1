"""What `save_hyperparameters` keeps of a model or of data that the command line builds.

Lightning's command line adds the key `_instantiator`, by which `load_from_checkpoint` has jsonargparse build the object
again, and fails where that is not installed. It is needed only where an argument is more than JSON can say: an object
of another class, an enum, a path. Everything else the constructor takes as it is.
"""

import inspect
from collections.abc import Callable
from enum import Enum
from typing import Any

from pipeline.training.logs.hparams import OF_COMMAND_LINE

_CLASS_PATH = "_class_path"


def remembered(construct: Callable[..., Any]) -> Callable[..., Any]:
    """Return an instantiator of jsonargparse that leaves hyperparameters which load without it, where that is possible.

    Args:
        construct: Lightning's own one.
    """

    def build(kind: type, /, *args: Any, applied_instantiation_links: dict[str, Any], **named: Any) -> Any:
        made = construct(kind, *args, applied_instantiation_links=applied_instantiation_links, **named)
        for name in ("_hparams", "_hparams_initial"):
            _simplify(kind, getattr(made, name, None), named)
        return made

    return build


def _simplify(kind: type, kept: Any, given: dict[str, Any]) -> None:
    """Take out what only jsonargparse needs, unless it is needed.

    Args:
        kind: The class that was built.
        kept: Its hyperparameters, None where it keeps none.
        given: The arguments that its constructor got.
    """
    if not isinstance(kept, dict) or OF_COMMAND_LINE not in kept:
        return
    if not all(_is_plain(given[name]) for name in kept if name in given):
        return
    del kept[OF_COMMAND_LINE]
    if any(each.kind is each.VAR_KEYWORD for each in inspect.signature(kind).parameters.values()):
        kept.pop(_CLASS_PATH, None)  # it would be taken for an argument; elsewhere Lightning leaves it out
    for name in kept.keys() & given.keys():
        if _as_json(given[name]) == kept[name]:
            kept[name] = given[name]  # a tuple stays one


def _is_plain(value: Any) -> bool:
    """Return whether JSON can say a value, but for the difference between tuples and lists."""
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(_is_plain, value))
    if isinstance(value, dict):
        return type(value) is dict and all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    return value is None or (isinstance(value, (str, int, float)) and not isinstance(value, Enum))


def _as_json(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_as_json(each) for each in value]
    return {key: _as_json(each) for key, each in value.items()} if isinstance(value, dict) else value
