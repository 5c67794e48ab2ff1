"""A callback that shows what the process of each rank has been given, torch and Lightning included."""

import gc
import json
import locale
import logging
import multiprocessing
import os
import random
import signal
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torchmetrics.utilities import prints

from pipeline.agent.standby import is_standby
from tests.support.process_state import process_state

DRAWN = [random.random(), float(np.random.rand())]
"""Before anything is seeded: other ones in each process."""


class ShowsItsProcess(pl.Callback):
    """Writes what each rank is, and kills rank 1 of the first attempt after its second step.

    Args:
        folder: For `<attempt>-<rank>.json`, and for the memory of the standby in MB, `standby-<attempt>`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        process = process_state()
        process["files"] = sorted(process["files"].values())
        state: dict[str, Any] = {
            **process,
            "drawn": DRAWN,
            "ranks": [rank_zero_only.rank, prints.rank_zero_only.rank],
            "threads of torch": [torch.get_num_threads(), torch.get_num_interop_threads()],
            "parallel": torch.__config__.parallel_info(),
            "seed": [torch.initial_seed(), random.random(), float(np.random.rand()), float(torch.rand(()))],
            "collector": [gc.isenabled(), gc.get_threshold()],
            # Of a standby, rank 1 has also those of the library by which TensorBoard logs reach S3.
            "warnings": [str(each) for each in warnings.filters if "urllib3" not in str(each)],
            "logs": [logging.getLogger(name).handlers.__len__() for name in ("", "pipeline", "lightning.pytorch")],
            "locale": [*locale.getlocale(), locale.setlocale(locale.LC_NUMERIC)],
            "multiprocessing": [multiprocessing.get_start_method(), multiprocessing.current_process().name],
        }
        (self.folder / f"{self.attempt}-{trainer.global_rank}.json").write_text(json.dumps(state))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 2 and trainer.global_rank == 1:
            agent = os.getppid()
            for pid in map(int, Path(f"/proc/{agent}/task/{agent}/children").read_text().split()):
                if is_standby(pid):
                    (self.folder / f"standby-{self.attempt}").write_text(str(private_mb(pid)))
            if self.attempt == "0":
                os.kill(os.getpid(), signal.SIGKILL)


def private_mb(pid: int) -> float:
    """The memory of a process that it shares with no other one."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024
