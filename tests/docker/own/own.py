"""A user's own code, which the image is patched with."""

import time
from typing import Any

import lightning.pytorch as pl


class Paced(pl.Callback):
    """Takes its time, so that a test can come between two steps."""

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(0.05)


class Hungry(pl.Callback):
    """Takes memory until there is no more, on rank 1, in the third step."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        taken = []
        while trainer.global_rank == 1 and trainer.global_step == 3:
            taken.append(bytearray(b"x" * (64 << 20)))
