"""A user's own callback."""

import time
from typing import Any

import lightning.pytorch as pl


class Paced(pl.Callback):
    """Takes its time, so that a test can come between two steps."""

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(0.05)
