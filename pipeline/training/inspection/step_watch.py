"""What the operations of a step leave in memory, and what they compute, seen from torch's dispatcher.

Three numbers of memory, each by itself: `StepWatch.peak`, the most bytes of tensors that live at one moment, whoever
holds them; `KeptTensors.peak`, the most that autograd keeps for the backward pass; and those of weights, gradients and
optimizers, which are there to be asked.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from pipeline.training.compat import Member, check

MEMBERS = (
    Member(torch.UntypedStorage, "_cdata", None, "tells one storage from another"),
    Member(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None, "is attention on the CPU"),
    Member(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None, "is its backward pass"),
    Member(torch._C, "_current_graph_task_id", None, "tells the backward pass from the forward pass"),
)

check(MEMBERS)

_FREE_OF_FLOPS = ("aten", "prim", "prims", "c10d", "_c10d_functional", "profiler", "debugprims", "rngprims")
"""Namespaces of operations that count nothing: they compute no products, or torch knows those that do."""
_PRODUCTS = ("rnn", "lstm", "gru")
"""Parts of the names of operations that compute products of which torch does not know how many."""


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value: in mappings, sequences and dataclasses, nested at will."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors_in(each)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


def storage_key(tensor: Tensor) -> tuple[int, int] | None:
    """Return which storage a tensor lies in and how many bytes that has, None where it has none of its own."""
    try:
        storage = tensor.untyped_storage()
        return storage._cdata, storage.nbytes()
    except (NotImplementedError, RuntimeError, ValueError):  # sparse, a subclass without memory, or not made yet
        return None


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors, each storage once."""
    held: dict[int, int] = {}
    for tensor in tensors:
        parts = [tensor._values(), tensor._indices()] if tensor.layout is torch.sparse_coo else [tensor]
        held.update(filter(None, map(storage_key, parts)))
    return sum(held.values())


def flop_counter() -> FlopCounterMode:
    """Return torch's counter of products, which knows attention on the CPU as well."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def forward_flops(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:  # noqa: ARG001
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    def backward_flops(grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:  # noqa: ARG001
        return int(sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]

    return FlopCounterMode(display=False, custom_mapping={attention: forward_flops, backward: backward_flops})


class StepWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation while it is entered.

    Args:
        living: Tensors that are there already.
        flops: Returns the operations counted so far.

    Attributes:
        now: Bytes of the tensors that live.
        peak: The most bytes at one moment.
        backward_flops: Those of the backward passes.
        uncounted: Names of operations that may compute products of which torch does not know how many.
    """

    def __init__(self, living: Iterable[Tensor], flops: Callable[[], int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.backward_flops = 0
        self.uncounted: set[str] = set()
        self._flops = flops
        self._living: dict[int, int] = {}
        for tensor in living:
            self._see(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self._flops()
        out = func(*args, **(kwargs or {}))
        counted = self._flops() - before
        if torch._C._current_graph_task_id() != -1:
            self.backward_flops += counted
        if not counted:
            self._ask(func)
        for tensor in tensors_in(out):
            self._see(tensor)
        return out

    def _ask(self, func: Any) -> None:
        namespace, _, name = str(getattr(func, "name", lambda: "aten::")()).partition("::")
        if namespace not in _FREE_OF_FLOPS or any(part in name for part in _PRODUCTS):
            self.uncounted.add(f"{namespace}::{name.partition('.')[0]}")

    def _see(self, tensor: Tensor) -> None:
        found = storage_key(tensor)
        if found is None or found[0] in self._living:
            return
        key, size = found
        self._living[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(tensor.untyped_storage(), self._lose, key).atexit = False

    def _lose(self, key: int) -> None:
        self.now -= self._living.pop(key)


class KeptTensors(saved_tensors_hooks):
    """Sees every tensor that autograd keeps for a backward pass while it is entered.

    Args:
        besides: Tensors that are there anyway, such as the weights.
        kept: Called with the bytes of each storage that is newly kept.

    Attributes:
        peak: The most bytes that were kept at one moment, each storage once.
    """

    def __init__(self, besides: Iterable[Tensor], kept: Callable[[int], None]) -> None:
        super().__init__(self._pack, _KeptTensor.unpack)
        self.peak = self._now = 0
        self._besides = {found[0] for found in map(storage_key, besides) if found is not None}
        self._holders: dict[int, int] = {}
        self._kept = kept

    def _pack(self, tensor: Tensor) -> "_KeptTensor":
        found = storage_key(tensor)
        if found is None or found[0] in self._besides:
            return _KeptTensor(tensor, lambda: None)
        key, size = found
        self._holders[key] = self._holders.get(key, 0) + 1
        if self._holders[key] == 1:
            self._now += size
            self.peak = max(self.peak, self._now)
            self._kept(size)
        return _KeptTensor(tensor, lambda: self._release(key, size))

    def _release(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self._now -= size


class _KeptTensor:
    """A tensor that autograd keeps, until it lets go of it."""

    def __init__(self, tensor: Tensor, release: Callable[[], None]) -> None:
        # A tensor that is an output of its own node would hold that, and be held by it.
        self._tensor = tensor.detach() if tensor.grad_fn is not None else tensor
        self._let_go = release

    def unpack(self) -> Tensor:
        return self._tensor

    def __del__(self) -> None:
        self._let_go()
