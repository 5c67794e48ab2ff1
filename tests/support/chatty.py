"""A model that talks while it trains, in every way in which a program does."""

import logging
import os
import sys
import time
import warnings
from typing import Any

from torch import Tensor

from tests.support.models import Regression


class Chatty(Regression):
    """Trains slowly, and says things.

    Args:
        seconds: For each step.
        fails_at: The step at which it raises, 0 for none.
    """

    def __init__(self, seconds: float = 0.0, fails_at: int = 0, learning_rate: float = 0.05) -> None:
        super().__init__(learning_rate)
        self.seconds, self.fails_at = seconds, fails_at

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        step = self.global_step
        time.sleep(self.seconds)
        print(f"printed in step {step}, out loud")
        os.write(2, f"written by C code in step {step}, past Python\n".encode())
        logging.getLogger("pipeline.own").info("logged in step %d, by a logger", step)
        if step == 2:
            warnings.warn("a warning of the model's own", stacklevel=1)
            sys.stdout.write("half a line, ")
            sys.stdout.flush()
            time.sleep(self.seconds + 0.01)
            print("and its other half")
        if self.fails_at and step == self.fails_at:
            raise RuntimeError("a fault of the model's own")
        loss = super().training_step(batch, batch_idx)
        self.log("own_loss", loss, prog_bar=True)
        return loss


class WarnsOnRank1(Chatty):
    def on_train_start(self) -> None:
        if self.global_rank == 1:
            logging.getLogger("a.library").warning("only rank 1 has this problem")
        logging.getLogger("a.library").warning("every rank has this problem")
