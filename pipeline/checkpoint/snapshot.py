"""Copy what is to be saved into host memory that the next copy reuses: all that training waits for."""

from typing import Any

import torch
from torch import Tensor

_VALUES = frozenset({str, bool, int, float, type(None)})


class Snapshots:
    """Takes one snapshot at a time: the next one overwrites the memory of the last one.

    Each storage is copied once, so that tensors which share one (tied weights, slices) share the copy too. From a GPU
    the copies run on a stream of their own into pinned memory; later work on the GPU waits for them, Python does not.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, bool], list[Tensor]] = {}
        self._free: dict[tuple[int, bool], list[Tensor]] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    @property
    def bytes(self) -> int:
        """The bytes of all copies: about those of the file."""
        return sum(size * len(buffers) for (size, _), buffers in self._buffers.items())

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """Copy a state of tensors in dictionaries, lists and tuples.

        Returns:
            The same structure over the copies; it is complete after `wait`.
        """
        self._free, self._buffers = self._buffers, {}
        copies: dict[tuple[torch.device, int, int], Tensor] = {}
        for device in self._streams:
            self._streams[device].wait_stream(torch.cuda.current_stream(device))
        made: dict[str, Any] = self._copy(state, copies)
        for device, stream in self._streams.items():
            # The next step must not change what is still being copied.
            torch.cuda.current_stream(device).wait_stream(stream)
        self._free = {}  # what this state no longer needs is freed
        return made

    def wait(self) -> None:
        """Wait until the copies are complete; for the thread that reads them."""
        for stream in self._streams.values():
            stream.synchronize()

    def _copy(self, value: Any, copies: dict[tuple[torch.device, int, int], Tensor]) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value.detach(), copies)
        if isinstance(value, dict):
            copied = {key: each if type(each) in _VALUES else self._copy(each, copies) for key, each in value.items()}
            if type(value) is dict:
                return copied
            value = value.copy()
            value.update(copied)
            return value
        if type(value) in (list, tuple):
            return type(value)(self._copy(each, copies) for each in value)
        return value

    def _tensor(self, tensor: Tensor, copies: dict[tuple[torch.device, int, int], Tensor]) -> Tensor:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type not in ("cpu", "cuda"):
            return tensor.cpu().clone()
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        key = (tensor.device, storage.data_ptr(), size)
        if key not in copies:
            source = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            copies[key] = self._buffer(size, pinned=tensor.device.type == "cuda")
            if tensor.device.type == "cuda":
                with torch.cuda.stream(self._stream(tensor.device)):
                    copies[key].copy_(source, non_blocking=True)
            else:
                copies[key].copy_(source)
        copy = torch.empty(0, dtype=tensor.dtype)
        return copy.set_(copies[key].untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._streams[device].wait_stream(torch.cuda.current_stream(device))
        return self._streams[device]

    def _buffer(self, size: int, pinned: bool) -> Tensor:
        free = self._free.get((size, pinned))
        buffer = free.pop() if free else torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._buffers.setdefault((size, pinned), []).append(buffer)
        return buffer
