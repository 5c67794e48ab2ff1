"""The weights of a module by name, in safetensors or as a state_dict, and read back into a module that has none."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from pipeline.checkpoint.foreign import listed
from pipeline.commands.export.description import Description
from pipeline.errors import UserError

_KEPT_BY = "--format state_dict keeps them"


def tied_names(module: nn.Module) -> dict[str, str]:
    """Return which names of a module's tensors mean the very same memory as an earlier one, and that one's name."""
    first: dict[Any, str] = {}
    tied = {}
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor) and (key := _memory(value)) is not None and first.setdefault(key, name) != name:
            tied[name] = first[key]
    return tied


def write_safetensors(module: nn.Module, path: Path, description: Description) -> None:
    """Write each tensor once; of tied ones the first name, as `safetensors.torch.load_model` expects it.

    Raises:
        UserError: The format cannot hold some of what the module keeps.
    """
    state = module.state_dict()
    objects = [name for name, value in state.items() if not isinstance(value, Tensor)]
    refused = [f"{name} ({_kind(value)})" for name, value in state.items() if not _fits(value) and name not in objects]
    problems = []
    if objects:
        problems.append(f"safetensors holds tensors alone, and {listed(objects)} are objects: {_KEPT_BY}")
    if refused:
        problems.append(f"safetensors cannot hold {listed(refused)}: {_KEPT_BY}")
    if problems:
        raise UserError(*problems)
    if not state:
        raise UserError(f"{type(module).__name__} has no weights: there is nothing to export")
    # Contiguous, and none within another one's memory, which the format refuses.
    tensors = {name: value.contiguous().clone() for name, value in state.items() if name not in description.tied}
    save_file(tensors, path, metadata={"format": "pt", **description.as_texts()})
    _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Put the names of a file's metadata in order, in place: the library writes them in another one each time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "it is the same text in another order"
        file.seek(8)
        file.write(text.ljust(length))


def write_state_dict(module: nn.Module, path: Path, _: Description) -> None:
    """Write what `torch.load(path, weights_only=True)` reads. What it comes from is in the JSON file beside it.

    Raises:
        UserError: It would not load without executing pickled code, or there is nothing to write.
    """
    state = dict(module.state_dict())
    if not state:
        raise UserError(f"{type(module).__name__} has no weights: there is nothing to export")
    torch.save(state, path)
    try:
        torch.load(path, weights_only=True, mmap=True)
    except Exception as error:
        extra = [name for name, value in state.items() if not isinstance(value, Tensor)]
        raise UserError(
            f"{listed(extra) or 'its state'} cannot be loaded again without executing pickled code: return tensors, "
            "numbers and texts from get_extra_state"
        ) from error


def read_safetensors(module: nn.Module, path: Path, description: Description) -> nn.Module:
    """Return a module of the same form whose tensors are those of a file, and no others."""
    tensors = load_file(path)
    return _filled(module, {**tensors, **{name: tensors[kept] for name, kept in description.tied.items()}})


def read_state_dict(module: nn.Module, path: Path, _: Description) -> nn.Module:
    """Return a module of the same form whose tensors are those of a file, and no others."""
    return _filled(module, torch.load(path, weights_only=True))


def _filled(module: nn.Module, state: dict[str, Any]) -> nn.Module:
    fresh = copy.deepcopy(module)
    with torch.no_grad():
        for value in fresh.state_dict().values():
            if isinstance(value, Tensor) and not value.is_quantized:
                value.zero_()
    fresh.load_state_dict(state, strict=True)
    return fresh


def _memory(value: Tensor) -> Any:
    """Return what two names of one tensor have in common, None for what has no memory of its own."""
    if value.layout is not torch.strided or not value.numel():
        return None
    return value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride()


def _fits(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_quantized:
        return False
    try:
        save({"x": torch.empty(0, dtype=value.dtype)})
    except Exception:  # noqa: BLE001 - however it refuses a type
        return False
    return True


def _kind(value: Tensor) -> str:
    layout = "" if value.layout is torch.strided else f"{value.layout} "
    return f"{layout}{value.dtype}".replace("torch.", "")
