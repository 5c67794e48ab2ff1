"""A worker that was forked from a standby: what Lightning and numpy have taken from the environment when imported."""

import os

import numpy as np
from lightning.fabric.utilities import rank_zero
from torchmetrics.utilities import prints


def renew_imports() -> None:
    """Set what an import in this process would set, with its own environment and its own entropy."""
    rank_zero.rank_zero_only.rank = int(os.environ.get("RANK", "0"))  # type: ignore[attr-defined]
    prints.rank_zero_only.rank = int(os.environ.get("LOCAL_RANK", "0"))  # type: ignore[attr-defined]
    np.random.seed()  # or siblings would draw the same numbers without a seed
