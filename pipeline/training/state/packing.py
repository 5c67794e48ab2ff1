"""Send what holds tensors to other ranks: pickle of torch's tensors alone takes most of the time of a small state.

Only ranks of one process group unpickle it, which trust each other: torch's own collectives of objects do the same.
"""

import copyreg
import io
import pickle
from typing import Any

import torch
from torch import Tensor


def packed(value: Any) -> bytes:
    """Return an object as bytes, with copies of its tensors on the CPU; each is a tensor of its own."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = copyreg.dispatch_table | {Tensor: _reduce}
    pickler.dump(value)
    return file.getvalue()


def unpacked(data: bytes | memoryview) -> Any:
    """Return the object of `packed`."""
    return pickle.loads(data)  # noqa: S301 - of this process group


def _reduce(tensor: Tensor) -> Any:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
        return tensor.__reduce_ex__(2)  # type: ignore[no-untyped-call]
    plain = tensor.detach().cpu().contiguous()
    return _tensor, (plain.reshape(-1).view(torch.uint8).numpy().tobytes(), plain.dtype, plain.shape)


def _tensor(data: bytes, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).reshape(shape)
