"""What a bit-equal resume needs beside weights and optimizer: each rank's random numbers and sums, and the metrics.

Everything is tensors, numbers and strings, so that it loads without executing pickled code.
"""

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist

from pipeline.training import metric_state as sums


def own(trainer: pl.Trainer) -> dict[str, Any]:
    """The state of this rank as it is now: copies, for a save that may come later."""
    return {
        "random": _random_state(trainer),
        "sums": sums.collect(trainer),
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
    }


def collect(trainer: pl.Trainer, mine: dict[str, Any] | None = None) -> dict[str, Any]:
    """The state of every rank. All ranks must call it.

    Args:
        trainer: Whose ranks are asked.
        mine: What `own` returned; None: as it is now.

    Returns:
        On rank 0 `ranks` (one entry for each) and `metrics`; nothing on the others.
    """
    mine = dict(own(trainer) if mine is None else mine)
    metrics = mine.pop("metrics")
    ranks: list[Any] | None = [mine]
    if trainer.world_size > 1:
        ranks = [None] * trainer.world_size if trainer.is_global_zero else None
        dist.gather_object(mine, ranks)
    return {} if ranks is None else {"ranks": ranks, "metrics": metrics}


class Restoring:
    """Puts a collected state back, each part at the moment that corresponds to the one where it was collected.

    Args:
        state: What `collect` returned on rank 0.
        with_sums: Whether the epoch goes on in its middle, so that what it has summed up counts.
    """

    def __init__(self, state: dict[str, Any], with_sums: bool = True) -> None:
        self.state = state
        self.begun = False
        self._with_sums = with_sums
        self._sums = sums.Sums({"logged": {}, "torchmetrics": {}})

    def before_training(self, trainer: pl.Trainer) -> None:
        """Put the metrics back that callbacks and schedules look at: without them a schedule would crash."""
        known = trainer._logger_connector._callback_metrics
        known.update({name: torch.tensor(value) for name, value in self.state["metrics"].items()})

    def before_first_batch(self, trainer: pl.Trainer) -> None:
        """Put the random numbers back, and what the model has summed up in this epoch."""
        self.begun = True
        ranks, rank = self.state["ranks"], trainer.global_rank
        if len(ranks) == trainer.world_size:
            _set_random_state(trainer, ranks[rank]["random"])
            found = ranks[rank]["sums"]
        else:
            # Another world: no rank is one that it was. Each draws numbers of its own; the sums go to one of them.
            key = [torch.initial_seed(), trainer.global_step, rank]
            entropy = np.random.SeedSequence(key).generate_state(3).tolist()
            torch.manual_seed(entropy[0])
            np.random.seed(entropy[1])
            random.seed(entropy[2])
            found = sums.combine([each["sums"] for each in ranks]) if rank == 0 else None
        if found is not None and self._with_sums:
            self._sums = sums.Sums(found)
        self._sums.before_first_batch(trainer)

    def after_batch(self, trainer: pl.Trainer) -> None:
        """Put sums back as their names are logged again."""
        self._sums.after_batch(trainer)

    def at_epoch_end(self, trainer: pl.Trainer) -> None:
        """Put the rest of the sums back."""
        self._sums.at_epoch_end(trainer)


def _random_state(trainer: pl.Trainer) -> dict[str, Any]:
    kind, words, at, has_gauss, gauss = np.random.get_state()
    version, internal, python_gauss = random.getstate()
    device = trainer.strategy.root_device
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(words).astype(np.int64)),
            int(at),
            int(has_gauss),
            float(gauss),
        ],
        "python": [int(version), torch.tensor(internal, dtype=torch.int64), python_gauss],
    }


def _set_random_state(trainer: pl.Trainer, state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    device = trainer.strategy.root_device
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, words.cpu().numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
