"""Snapshots of a state on the device, and a save of 2 GB beside training."""

import time
from collections.abc import Callable
from statistics import mean, median
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor, nn

from pipeline.checkpoint.commit import newest
from pipeline.checkpoint.load import load
from pipeline.checkpoint.saver import Saver
from pipeline.checkpoint.snapshot import Snapshots
from pipeline.commands.drill.compare import compare_exactly
from pipeline.run.run_dir import RunDir
from tests.benchmarks.processes import forked
from tests.benchmarks.saving import record, state
from tests.gpu_check.check import CheckFailed, Figures, Setting, check

STOPPED_BAR = 20
"""How many times shorter than Lightning's a save has to stop training, on a device."""


def synchronize(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def duplicate(value: Any) -> Any:
    """Clone each tensor on its device, in the order of its work: what a snapshot must be."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: duplicate(each) for key, each in value.items()}
    return [duplicate(each) for each in value] if isinstance(value, (list, tuple)) else value


class Trained:
    """A model that is trained, with tied and sliced weights and some in bf16, and all that a checkpoint holds of it."""

    def __init__(self, device: str, width: int) -> None:
        self.device = device
        self.x = torch.rand(64, width, device=device)
        self.model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.BatchNorm1d(width))
        self.model.to(device)
        self.model[2].weight = self.model[0].weight
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.half = torch.rand(width, width, device=device).bfloat16()

    def step(self) -> None:
        """Train, which overwrites every number that a snapshot copies."""
        self.optimizer.zero_grad()
        nn.functional.mse_loss(self.model(self.x), self.x).backward()
        self.optimizer.step()
        self.half.mul_(-1.01)

    def state(self) -> dict[str, Any]:
        optimizer = {str(key): each for key, each in self.optimizer.state_dict()["state"].items()}
        parts = {"half": self.half, "slice": self.half[1:5, 2:], "column": self.half.t()[3]}
        return {"weights": dict(self.model.state_dict()), "optimizer": optimizer, **parts}


def pinned(weights: dict[str, Tensor]) -> bool:
    return all(each.is_pinned() for each in weights.values())


def snapshots(device: str, width: int, rounds: int) -> tuple[list[str], Figures]:
    """Take snapshots between steps, each of which begins while the copies may still be under way.

    Returns:
        What was not equal, and figures.
    """
    trained, taken, wrong, taking = Trained(device, width), Snapshots(), [], []
    trained.step()
    for number in range(rounds):
        expected = duplicate(trained.state())
        synchronize(device)
        began = time.perf_counter()
        copy = taken.take(trained.state())
        taking.append(1e3 * (time.perf_counter() - began))
        for _ in range(3):
            trained.step()
        taken.wait()
        compared = compare_exactly(f"snapshot {number}", expected, copy)
        wrong += [] if compared.holds else [f"{compared.name}: {compared.found}"]
        unpinned = device == "cuda" and not pinned(copy["weights"])
        wrong += [f"snapshot {number} is not in pinned memory"] if unpinned else []
    return wrong, {"snapshots": rounds, "MB": taken.bytes / 1e6, "host, ms each": median(taking)}


@check("snapshots")
def equal_snapshots(setting: Setting) -> Figures:
    """Snapshots (pinned memory, side stream) equal the device's state while training overwrites it."""
    wrong, figures = forked(
        snapshots, setting.device, setting.pick(64, 4096), setting.pick(5, 20), log=setting.log, limit=120
    )
    if wrong:
        raise CheckFailed("; ".join(wrong[:3]), figures)
    return figures


def timed_save(device: str, save: Callable[[], Any], step: Callable[[], None], alone: float) -> float:
    """Seconds by which a save delays the end of the next step."""
    synchronize(device)
    began = time.perf_counter()
    save()
    step()
    return time.perf_counter() - began - alone


def save_beside_steps(folder: str, device: str, megabytes: int, size: int) -> tuple[str, Figures]:
    """Save while steps change what is saved, and load it again.

    Returns:
        What was not equal, and figures.
    """
    held, run = state(megabytes, device), RunDir(f"{folder}/run")
    saver, lightning = Saver(run, 60), TorchCheckpointIO()
    matrix = torch.rand(size, size, device=device)

    def step() -> None:
        for _ in range(10):
            matrix @ matrix
        held["state_dict"]["layer0"].add_(1.0)
        held["state_dict"]["layer19"].add_(1.0)
        synchronize(device)

    def seconds() -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    saver.save(held, record(1))  # takes pinned memory, which the next one uses again
    saver.finish()
    lightning.save_checkpoint(state(1), f"{folder}/first.ckpt")  # imports what it needs
    alone = [seconds() for _ in range(20)][5:]
    theirs = timed_save(device, lambda: lightning.save_checkpoint(held, f"{folder}/theirs.ckpt"), step, median(alone))
    expected, began, beside = duplicate(held["state_dict"]), time.perf_counter(), []
    stopped = timed_save(device, lambda: saver.save(held, record(2)), step, median(alone))
    while saver.saving:
        beside.append(seconds())
    took = time.perf_counter() - began
    saver.finish()
    committed = newest(run)
    if committed is None or committed.step != 2:
        return "the save was not committed", {}
    compared = compare_exactly("state", expected, load(run, committed)["state_dict"])
    figures = {
        "MB": megabytes,
        "stopped, ms": 1e3 * max(0.0, stopped),
        "Lightning stopped, ms": 1e3 * theirs,
        "times shorter": theirs / max(stopped, 1e-6),
        "s until committed": took,
        "speed of steps meanwhile, of that without": mean(alone) / mean(beside or alone),
    }
    return "" if compared.holds else compared.found, figures


@check("save")
def save(setting: Setting) -> Figures:
    """A save of 2 GB while steps change it: how long they stop, how fast they are meanwhile, what is loaded again."""
    sizes = setting.pick(8, 2000), setting.pick(128, 4096)
    wrong, figures = forked(save_beside_steps, str(setting.folder), setting.device, *sizes, log=setting.log, limit=150)
    if wrong:
        raise CheckFailed(wrong, figures)
    if setting.card is not None and float(figures["times shorter"]) < STOPPED_BAR:
        raise CheckFailed(f"training stopped for more than 1/{STOPPED_BAR} of Lightning's save", figures)
    return figures
