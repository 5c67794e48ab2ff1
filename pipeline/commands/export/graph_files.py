"""The computation of a module as a file: torch.export's pt2, and ONNX made of the same graph."""

import inspect
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from pipeline.commands.export.description import KEY, Description
from pipeline.commands.export.example_inputs import ExampleInputs, Inputs, copied
from pipeline.commands.export.trained_module import reason
from pipeline.errors import UserError, install_command
from pipeline.training.inspection.step_watch import tensors_in

_LARGEST_ONNX = 2**31 - 1
"""Bytes of one protobuf message."""


def require_onnx() -> None:
    """Refuse ONNX where its packages are not installed.

    Raises:
        UserError: With the command that installs them.
    """
    if absent := [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]:
        raise UserError(f"format='onnx' needs {', '.join(absent)}: {install_command('onnx')}")


def trace(module: nn.Module, inputs: ExampleInputs, dynamic: bool) -> ExportedProgram:
    """Return the graph of a module.

    Args:
        module: In eval mode.
        inputs: Of two batch sizes, where it is to take any.
        dynamic: Whether it is.

    Raises:
        UserError: Its forward cannot be traced.
    """
    call, name = inputs.calls[0], f"forward of {type(module).__name__} cannot be traced"
    shapes = _dynamic_shapes(module, inputs) if dynamic else None
    try:
        return _traced(module, call, shapes)
    except Exception as error:
        if shapes is not None and _is_traceable(module, call):
            raise UserError(
                f"{name} for batches of any size: {reason(error)}. For those of one size it can: --dynamic_batch false"
            ) from error
        raise UserError(
            f"{name}: {reason(error)}. Its control flow may depend on the shapes of its inputs, not on their values. "
            "--format safetensors and --format state_dict need no tracing"
        ) from error


def _is_traceable(module: nn.Module, call: Inputs) -> bool:
    try:
        _traced(module, call, None)
    except Exception:  # noqa: BLE001 - whatever the tracer raises
        return False
    return True


def _traced(module: nn.Module, call: Inputs, shapes: Any) -> ExportedProgram:
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), _quiet():
        args, kwargs = tree_map(copied, (call.args, call.kwargs))  # the tracer leaves marks on what it is given
        return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)


def write_pt2(program: ExportedProgram, path: Path, description: Description) -> None:
    """Write a graph as `torch.export.load` reads it."""
    with _quiet():
        torch.export.save(program, path, extra_files={f"{KEY}.json": json.dumps(description.as_dict())})


def read_pt2(path: Path) -> Callable[[Inputs], Any]:
    """Return what computes as a file says."""
    with _quiet():
        module = torch.export.load(path).module()

    def compute(call: Inputs) -> Any:
        with torch.no_grad():
            torch.manual_seed(0)
            return module(*call.args, **call.kwargs)

    return compute


def write_onnx(program: ExportedProgram, path: Path, description: Description) -> None:
    """Write a graph as ONNX, in one file.

    Raises:
        UserError: ONNX has no operator for a part of it, or one file cannot hold it.
    """
    if (size := sum(each.nbytes for each in program.state_dict.values() if isinstance(each, Tensor))) > _LARGEST_ONNX:
        raise UserError(f"the weights have {size:,} bytes, and an ONNX file can hold 2 GB: take --format pt2")
    try:
        with _quiet():
            made: Any = torch.onnx.export(program, verbose=False)
    except Exception as error:
        raise UserError(f"the module cannot be said in ONNX: {reason(error)}. --format pt2 may keep it") from error
    made.model.metadata_props.update(description.as_texts())
    made.save(path)


def read_onnx(path: Path) -> Callable[[Inputs], Any]:
    """Return what computes as a file says, by onnxruntime on the CPU.

    Raises:
        UserError: onnxruntime cannot run it there.
    """
    import onnxruntime  # type: ignore[import-untyped] # noqa: PLC0415 - an extra

    advice = "take another --format"
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"onnxruntime cannot run this module on a CPU: {reason(error)}: {advice}") from error
    names = [each.name for each in session.get_inputs()]

    def compute(call: Inputs) -> Any:
        try:
            fed = dict(zip(names, (each.numpy() for each in call.tensors), strict=True))
            return [torch.from_numpy(each) for each in session.run(None, fed)]
        except Exception as error:
            raise UserError(f"onnxruntime fails on this module: {reason(error)}: {advice}") from error

    return compute


def _dynamic_shapes(module: nn.Module, inputs: ExampleInputs) -> Any:
    """Return which dimensions of each argument differ between two batch sizes; None where none does."""
    if len(inputs.calls) < 2:
        return None
    bound = [inspect.signature(module.forward).bind(*each.args, **each.kwargs).arguments for each in inputs.calls]
    shapes = tree_map(_differing, *(dict(each) for each in bound))
    return shapes if any(True for each in tensors_in(bound[0])) else None


def _differing(one: Any, other: Any) -> dict[int, Any] | None:
    if not isinstance(one, Tensor):
        return None
    return {at: Dim.DYNAMIC for at, sizes in enumerate(zip(one.shape, other.shape, strict=True)) if len(set(sizes)) > 1}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the tracer tells its developers off the screen."""
    log = logging.getLogger("torch")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        log.setLevel(before)
