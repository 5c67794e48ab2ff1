"""What the forward of a module takes: found by watching it work on a batch of the run's own data.

A batch is handed to `predict_step`, to the module itself in the ways that a batch may be meant, and to the other steps,
until the part that is exported has been called; the arguments of that call are its inputs. They are asked for with two
sizes of the batch: what differs between those is the dimension of the batch.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pipeline.commands.export.trained_module import TrainedModule, prepare_data, reason
from pipeline.data.datamodule import DataModule
from pipeline.errors import UserError
from pipeline.training.inspection.step_watch import tensors_in

SIZES = (4, 3)
"""Of the two batches, for the tracer takes what has one row for a constant."""
_SPLITS = {"predict": "predict", "test": "test", "val": "fit", "train": "fit"}
"""The sets in which a batch is looked for, and the stage of each."""
_STEPS = ("validation_step", "test_step", "training_step")
_SHAPE = re.compile(r"\s*(\d+(?:\s*,\s*\d+)*)\s*(?::\s*(\w+)\s*)?")


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors in them, in the order in which a graph takes them."""
        return [each for each in tree_leaves((self.args, self.kwargs)) if isinstance(each, Tensor)]


@dataclass(frozen=True)
class ExampleInputs:
    """Calls of a module with batches of two sizes, or of one where the batch cannot be resized.

    Attributes:
        calls: The larger batch first.
        origin: Where they come from, in words.
    """

    calls: list[Inputs]
    origin: str

    def described(self, module: nn.Module) -> str:
        """Return which arguments the module's forward takes, by name and shape."""
        call = self.calls[0]
        named = inspect.signature(module.forward).bind(*call.args, **call.kwargs).arguments
        return f"forward({', '.join(f'{name}: {_form(value)}' for name, value in named.items())}), {self.origin}"


class _Called(BaseException):
    """The watched part has been called: nothing after that is of interest."""


def find_inputs(trained: TrainedModule, part: nn.Module, shapes: str | None) -> tuple[ExampleInputs | None, list[str]]:
    """Return inputs for a part of a model; None where none are known, with why.

    Args:
        trained: The model, with a trainer.
        part: Of it.
        shapes: What the user gave as `--input_shape`.

    Raises:
        UserError: The shapes are wrong, or the part does not take them.
        StorageAway: The data's storage does not answer.
    """
    failures: list[str] = []
    if shapes is not None:
        calls = [_given(shapes, part, size) for size in (None, _other_size(shapes))]
        try:
            for call in calls:
                run(part, call)
        except Exception as error:
            raise UserError(f"input_shape={shapes!r}: forward does not take it: {reason(error)}") from error
        return ExampleInputs(calls, "given by --input_shape"), failures
    for name, batch in _batches(trained, failures):
        found = _of_batch(trained.model, part, name, batch, failures)
        if found is not None:
            return found, failures
    return None, failures


def run(module: nn.Module, call: Inputs, seed: int = 0) -> Any:
    """Return what a module computes, with the random numbers of a seed, and without compiling it."""
    with torch.no_grad(), isolate_rng(), torch.compiler.set_stance("force_eager"):
        torch.manual_seed(seed)
        return module(*tree_map(copied, call.args), **tree_map(copied, call.kwargs))


def _batches(trained: TrainedModule, failures: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield a batch of each set that has one, then the model's own example."""
    source = trained.source
    for split, stage in _SPLITS.items():
        if not is_overridden(f"{split}_dataloader", source):
            continue
        if isinstance(source, DataModule) and source.datasets[split] is None:
            continue
        try:
            prepare_data(source if source is not trained.model else None, stage)
            yield f"data.{split}", _moved(trained, next(iter(_first(getattr(source, f"{split}_dataloader")()))))
        except Exception as error:  # noqa: BLE001 - whatever the user's own data raise
            failures.append(f"data.{split}: {reason(error)}")
    if (example := trained.model.example_input_array) is not None:
        yield "example_input_array", example


def _first(loaders: Any) -> Any:
    """Return the first one of several loaders, in sequences and mappings."""
    loaders = getattr(loaders, "iterables", loaders)  # of Lightning's CombinedLoader
    if isinstance(loaders, (list, tuple, dict)):
        return _first(next(iter(loaders.values() if isinstance(loaders, dict) else loaders)))
    return loaders


def _moved(trained: TrainedModule, batch: Any) -> Any:
    """Return a batch as the hooks around its move to the device leave it, those of the data or else of the model."""

    def owner(hook: str) -> Any:
        return trained.source if is_overridden(hook, trained.source) else trained.model

    batch = owner("on_before_batch_transfer").on_before_batch_transfer(batch, 0)
    batch = owner("transfer_batch_to_device").transfer_batch_to_device(batch, torch.device("cpu"), 0)
    return owner("on_after_batch_transfer").on_after_batch_transfer(batch, 0)


def _of_batch(
    model: pl.LightningModule, part: nn.Module, name: str, batch: Any, failures: list[str]
) -> ExampleInputs | None:
    """Return the calls that a batch leads to, in the first way that leads to any."""
    dtype = _floating_type(part)
    sizes = _sizes(batch)
    for said, way in _ways(model, batch, name == "example_input_array"):
        try:
            calls = []
            for rows in sizes:
                call = _called(model, part, partial(way, _resized(batch, rows)))
                if call is None:
                    break
                call = Inputs(tree_map(_cast(dtype), call.args), tree_map(_cast(dtype), call.kwargs))
                run(part, call)
                calls.append(call)
        except Exception as error:  # noqa: BLE001 - whatever the user's own code raises
            failures.append(f"{said} on {name}: {reason(error)}")
            continue
        if len(calls) == len(sizes):
            return ExampleInputs(calls, f"{said} of {name}")
    return None


def _ways(model: pl.LightningModule, batch: Any, example: bool) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Yield the ways in which a model may be meant to work on a batch, and their names."""
    if not example and is_overridden("predict_step", model):
        yield "as predict_step calls it with a batch", partial(_step, model, "predict_step")
    if isinstance(batch, dict):
        names = set(inspect.signature(model.forward).parameters) & batch.keys()
        if names:
            yield f"{', '.join(sorted(names))}", lambda rows: model(**{name: rows[name] for name in names})
    if isinstance(batch, (tuple, list)) and not example:
        yield "batch[0]", lambda rows: model(rows[0])
    if isinstance(batch, tuple) and example:
        yield "its elements", lambda rows: model(*rows)
    yield "the batch", model
    if isinstance(batch, (tuple, list)) and not example:
        yield "all elements of the batch", lambda rows: model(*rows)
    if isinstance(batch, dict):
        for key in batch:
            yield f"batch[{key!r}]", partial(_on_key, model, key)
    for step in () if example else _STEPS:
        if is_overridden(step, model):
            yield f"as {step} calls it with a batch", partial(_step, model, step)


def _on_key(model: pl.LightningModule, key: str, rows: Any) -> Any:
    return model(rows[key])


def _step(model: pl.LightningModule, step: str, rows: Any) -> Any:
    return getattr(model, step)(rows, 0)


def _called(model: nn.Module, part: nn.Module, work: Callable[[], Any]) -> Inputs | None:
    """Return the arguments with which a part is called first, None if it is not."""
    seen: list[Inputs] = []

    def watch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(Inputs(tree_map(copied, args), tree_map(copied, kwargs)))
        raise _Called

    hook = part.register_forward_pre_hook(watch, with_kwargs=True)
    vars(model)["log"] = lambda *_, **__: None  # there is no loop to log to
    try:
        with torch.no_grad(), isolate_rng(), torch.compiler.set_stance("force_eager"):
            work()
    except _Called:
        pass
    finally:
        hook.remove()
        del vars(model)["log"]
        model.eval()
    return seen[0] if seen else None


def _sizes(batch: Any) -> list[int | None]:
    """Return how many rows to ask for: two sizes, or what is there where that cannot be told."""
    try:
        size = int(extract_batch_size(batch))
    except Exception:  # noqa: BLE001 - a batch of anybody's
        return [None]
    return list(SIZES) if size else [None]


def _resized(batch: Any, rows: int | None) -> Any:
    """Return a batch with another number of rows: its first ones, repeated if there are not as many."""
    if rows is None:
        return batch
    size = int(extract_batch_size(batch))

    def taken(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[torch.arange(rows) % size] if value.ndim and len(value) == size else value
        if isinstance(value, list) and len(value) == size and not any(True for _ in tensors_in(value)):
            return [value[at % size] for at in range(rows)]
        if isinstance(value, dict):
            return {key: taken(each) for key, each in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(taken, value))
        return type(value)(map(taken, value)) if type(value) in (list, tuple) else value

    return taken(batch)


def _given(shapes: str, part: nn.Module, rows: int | None) -> Inputs:
    """Return inputs of the shapes that the user gave, with another batch size if one is given."""
    made = []
    generator = torch.Generator().manual_seed(0)
    for text in shapes.split(";"):
        found = _SHAPE.fullmatch(text)
        dtype = None if found is None else getattr(torch, found[2] or "float32", None)
        if found is None or not isinstance(dtype, torch.dtype):
            raise UserError(
                f"input_shape={shapes!r} must be the sizes of a tensor, batch first, such as 2,3,224,224, with its "
                "type if it holds no floating-point numbers: 2,16:int64; several tensors are separated by ';'"
            )
        sizes = [int(each) for each in found[1].split(",")]
        if not all(sizes):
            raise UserError(f"input_shape={shapes!r}: each size must be >= 1")
        sizes[0] = max(sizes[0], 2) if rows is None else rows
        dtype = (_floating_type(part) or dtype) if found[2] is None else dtype
        random = torch.randn(sizes, generator=generator) if dtype.is_floating_point or dtype.is_complex else None
        made.append((torch.randint(2, sizes, generator=generator) if random is None else random).to(dtype))
    return Inputs(tuple(made), {})


def _other_size(shapes: str) -> int:
    first = _SHAPE.fullmatch(shapes.partition(";")[0])
    return max(int(first[1].split(",")[0]), 2) + 1 if first else 2


def _floating_type(module: nn.Module) -> torch.dtype | None:
    """Return the type of a module's floating-point parameters if it is one and not the usual one."""
    found = {each.dtype for each in module.parameters() if each.is_floating_point()}
    return found.pop() if len(found) == 1 and torch.float32 not in found else None


def _cast(dtype: torch.dtype | None) -> Callable[[Any], Any]:
    return lambda value: value.to(dtype) if dtype and isinstance(value, Tensor) and value.is_floating_point() else value


def copied(value: Any) -> Any:
    """Return a tensor that nothing else changes; any other value as it is."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"({', '.join(map(str, value.shape))}) {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_form(each)}' for key, each in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_form, value))}]"
    return repr(value)[:40]
