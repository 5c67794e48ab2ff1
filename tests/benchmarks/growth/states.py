"""Over the size of the state: saves, states in host memory, and loads, on a local disk."""

import logging
import shutil
import time
from pathlib import Path

import torch

from pipeline.checkpoint.load import load, newest_verified
from pipeline.process.topology import Topology
from pipeline.run.run_dir import RunDir
from pipeline.training.memory_checkpoints import MemoryCheckpoints
from tests.benchmarks.growth.curve import OutOfReach, counted, curve
from tests.benchmarks.processes import forked
from tests.benchmarks.saving import COMMITTED, STOPPED, record, save_ours, seconds, state, touch
from tests.benchmarks.subject import Reading
from tests.support.host_memory import host_memory

PAUSE, UPLOAD, KEEP, LOAD = (
    "training stops for a save",
    "until it is on the local disk",
    "a state is kept in host memory",
    "it is loaded verified",
)
_MEGABYTE = 1_000_000
_TIMES = 3.3
"""The state, and what else holds it at the same time: a snapshot, or two slots of the host memory."""


def check(megabytes: int, folder: Path) -> None:
    """Refuse a size for which this machine is too small."""
    told = Path("/proc/meminfo").read_text()
    free = 1024 * int(told.partition("MemAvailable:")[2].split()[0])
    need = _TIMES * megabytes * _MEGABYTE
    for name, there in (("memory", free), ("disk", shutil.disk_usage(folder).free - 2_000_000_000)):
        if need > there:
            raise OutOfReach(f"{need / 1e9:.1f} GB of {name} are needed, {there / 1e9:.1f} GB are free")


def keep(megabytes: int) -> float:
    """Seconds to keep a state once both slots have their pages, as after the first two."""
    logging.disable(logging.NOTSET)
    held, model = state(megabytes), torch.nn.Linear(1, 1)
    took = 0.0
    with host_memory() as memory:
        keeps = MemoryCheckpoints(memory, Topology(0, 0, 1, 1, 0, 1), {"run": "r", "launch": "l", "attempt": 1})
        keeps.begin(model)
        for step in range(1, 4):
            began = time.perf_counter()
            keeps.keep_saved(model, held, record(step))
            took = time.perf_counter() - began
        assert len(memory.states()) == 2, "there was too little memory"
    return took


def load_newest(url: str) -> float:
    """Seconds until each number of the newest checkpoint was read, by a process that has not seen it."""

    def read() -> None:
        run = RunDir(url)
        found = newest_verified(run)
        assert found is not None
        touch(load(run, found[0]))

    return seconds(read)


@curve(
    "state",
    "MB",
    {PAUSE: "s", UPLOAD: "s", KEEP: "s", LOAD: "s"},
    {"tiny": (1, 2), "quick": counted(1, 64), "full": tuple(4**power for power in range(7))},
    rounds=2,
    check=check,
)
def states(megabytes: int, folder: Path) -> Reading:
    """A state is saved to a local disk, kept in host memory, and loaded again."""
    url, log = str(folder / "run"), folder / "log.txt"
    saved = forked(save_ours, url, megabytes, log=log)
    loaded = forked(load_newest, url, log=log)
    shutil.rmtree(url)
    return {
        PAUSE: saved[STOPPED],
        UPLOAD: saved[COMMITTED],
        KEEP: forked(keep, megabytes, log=log),
        LOAD: loaded,
    }
