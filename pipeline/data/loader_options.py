"""How loader processes read ahead: torch's own options, checked together."""

import multiprocessing
from typing import Any, NamedTuple


class LoaderOptions(NamedTuple):
    """Options of torch's DataLoader.

    Attributes:
        num_workers: Loader processes per process; 0 loads in the training process.
        prefetch_factor: Batches that each has ready; None: torch's default.
        multiprocessing_context: How they are started; None: Python's default.
        pin_memory: Whether batches are pinned; None: where the device is a GPU.
    """

    num_workers: int = 0
    prefetch_factor: int | None = None
    multiprocessing_context: str | None = None
    pin_memory: bool | None = None

    def problems(self) -> list[str]:
        """Return what is wrong with them, one sentence each."""
        found = []
        if self.num_workers < 0:
            found.append(f"data.num_workers={self.num_workers} must be >= 0")
        if self.prefetch_factor is not None and self.prefetch_factor < 1:
            found.append(f"data.prefetch_factor={self.prefetch_factor} must be >= 1")
        known = multiprocessing.get_all_start_methods()
        if self.multiprocessing_context not in (None, *known):
            found.append(
                f"data.multiprocessing_context={self.multiprocessing_context!r} must be one of {', '.join(known)}"
            )
        if self.num_workers == 0:
            found += [
                f"data.{name}={value} is about loader processes, and data.num_workers is 0: set it to 1 or more"
                for name in ("prefetch_factor", "multiprocessing_context")
                if (value := getattr(self, name)) is not None
            ]
        return found

    def arguments(self, on_gpu: bool) -> dict[str, Any]:
        """Return the arguments of a DataLoader.

        Args:
            on_gpu: Whether the device is a GPU.
        """
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": on_gpu if self.pin_memory is None else self.pin_memory,
            "prefetch_factor": self.prefetch_factor,
            "multiprocessing_context": self.multiprocessing_context,
        }
