"""The devices that a configuration asks for: how many, and how much memory each has."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.commands.inspection.quantities import parse_bytes
from pipeline.errors import UserError
from pipeline.process.cgroup import MemoryCgroup


@dataclass(frozen=True)
class AskedDevices:
    """Where a training would run.

    Attributes:
        accelerator: What the trainer is built with here: the one that was asked for, or `cpu` where that is absent.
        processes: On each node, one for each device.
        nodes: How many.
        memory: Bytes that each process has; None where that is not known.
        source: Where the number comes from, in words.
        shares_gradients: Whether gradients share the memory of DDP's buckets.
        absent: What was asked for and is not here, a sentence; None: nothing.
    """

    accelerator: str
    processes: int
    nodes: int
    memory: int | None
    source: str
    shares_gradients: bool
    absent: str | None = None

    @property
    def world_size(self) -> int:
        """Processes that would train."""
        return self.processes * self.nodes

    @staticmethod
    def of(trainer: Any, device_memory: str | None = None) -> "AskedDevices":
        """Return what the trainer's part of a configuration asks for.

        Args:
            trainer: Parsed, with `accelerator`, `devices`, `num_nodes` and `strategy`.
            device_memory: Of each device, where that is not to be looked up here.

        Raises:
            UserError: A number is none.
        """
        asked = trainer.accelerator if isinstance(trainer.accelerator, str) else "auto"
        has_cuda = torch.cuda.is_available()
        cuda = asked in ("gpu", "cuda") or (asked == "auto" and has_cuda)
        processes, nodes = _count(trainer.devices, cuda and has_cuda), trainer.num_nodes
        if nodes < 1:
            raise UserError(f"trainer.num_nodes={nodes} must be >= 1")
        given = None if device_memory is None else parse_bytes("device_memory", device_memory)
        shares = _shares_gradients(trainer.strategy)
        absent = None
        if cuda and not has_cuda:
            absent = f"trainer.accelerator={asked!r}: torch {torch.__version__} can use no GPU here; the CPU is taken."
        if given is not None:
            memory, source = given, "device_memory"
        elif cuda and has_cuda:
            memory, source = _cuda_memory(), torch.cuda.get_device_name(0)
        elif cuda:
            memory, source = None, "there is no GPU here to ask: say --device_memory 80GB"
        else:
            memory, source = _host_memory() // processes, f"this machine's, over {processes} processes"
            source = source if processes > 1 else "this machine"
        taken = "cpu" if absent or (asked == "auto" and not has_cuda) else asked
        return AskedDevices(taken, processes, nodes, memory, source, shares, absent)


def _count(devices: Any, cuda: bool) -> int:
    """Return how many devices of each node are meant by a number, a list of them, or `auto`."""
    if isinstance(devices, (list, tuple)):
        count = len(devices)
    else:
        text = str(devices).strip()
        if text in ("auto", "-1"):
            return max(1, torch.cuda.device_count()) if cuda else 1
        parts = [part for part in text.split(",") if part.strip()]
        if not all(part.strip().isdecimal() for part in parts):
            raise UserError(f"trainer.devices={devices!r} must be a number, a list of devices, -1 or auto")
        count = int(text) if "," not in text and parts else len(parts)
    if count < 1:
        raise UserError(f"trainer.devices={devices!r} must be >= 1 device")
    return count


def _cuda_memory() -> int:
    """Return the memory of the smallest GPU."""
    devices = range(torch.cuda.device_count())
    return min(int(torch.cuda.get_device_properties(each).total_memory) for each in devices)


def _host_memory() -> int:
    """Return what this container may use, else what this machine has."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = MemoryCgroup().limit()
    return machine if limit is None else min(limit, machine)


def _shares_gradients(strategy: Any) -> bool:
    """Return whether a configured strategy leaves gradients in DDP's buckets, as this project's own does."""
    if isinstance(strategy, str):
        return True
    given = {**(strategy.get("init_args") or {}), **(strategy.get("dict_kwargs") or {})}
    return given.get("gradient_as_bucket_view") is not False
