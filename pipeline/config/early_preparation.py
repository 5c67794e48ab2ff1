"""What data must download and split before they are looked at, one process of each node first.

Static or class methods `prepare_data` of datasets come before any dataset is built, others of that name after it.
"""

import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from jsonargparse import Namespace

from pipeline.config import messages
from pipeline.data.datamodule import DataModule
from pipeline.process.topology import Topology


def prepare(data: Any) -> None:
    """Call the static or class method `prepare_data` of each dataset in a configuration, once with the same arguments.

    It is given those arguments of the constructor that its parameters name, or all with `**kwargs`; other datasets
    among them are not built yet, and left out.

    Args:
        data: The configuration of the data module; None: there is none.
    """
    done: list[Any] = []
    for class_path, arguments in _classes(data):
        kind = _imported(class_path)
        method = inspect.getattr_static(kind, "prepare_data", None)
        if not isinstance(method, (staticmethod, classmethod)):
            continue
        function = kind.prepare_data
        parameters = inspect.signature(function).parameters.values()
        takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters)
        named = {each.name for each in parameters}
        given = {name: value for name, value in arguments.items() if takes_all or name in named}
        if (class_path, given) not in done:
            done.append((class_path, given))
            function(**given)


def set_up(data: DataModule, trainer: Any, topology: Topology) -> None:
    """Let data that are built download and split what they must before their samples are compared.

    Raises:
        UserError: They refused what they were given.
        StorageAway: They read from a storage that does not answer.
    """
    data.trainer = trainer
    prepares = topology.local_rank == 0 if data.prepare_data_per_node else topology.rank == 0

    def prepare_built() -> None:
        with messages.constructor_problems():
            data.prepare_early(prepares)

    def split() -> None:
        with messages.constructor_problems():
            data.set_up_early()

    topology.together("data prepared", prepare_built)
    topology.together("data set up", split)


def _classes(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the class path and the plain arguments of each object that a configuration describes, inner ones first."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _classes(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _classes(each)
        if isinstance(value.get("class_path"), str):
            arguments = value.get("init_args") or {}
            arguments = vars(arguments) if isinstance(arguments, Namespace) else arguments
            yield value["class_path"], {name: each for name, each in arguments.items() if not _is_built(each)}


def _is_built(value: Any) -> bool:
    """Return whether an argument is, or holds, an object that is to be built."""
    return next(_classes(value), None) is not None


def _imported(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)
