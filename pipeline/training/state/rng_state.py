"""What a bit-equal resume needs of each rank: random number generators, running sums, monitored metrics.

Everything is tensors, numbers and strings, so that it loads without executing pickled code.
"""

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist

from pipeline.training import compat
from pipeline.training.state import metric_state
from pipeline.training.state.packing import packed, unpacked
from pipeline.training.state.run_state import RunState

_COUNTS = ("consumed_samples", "_consumed_samples")


def capture(trainer: pl.Trainer) -> dict[str, Any]:
    """Return the state of this rank as it is now: copies, for a save that may come later."""
    return {
        "random": random_state(trainer),
        "sums": metric_state.capture(trainer),
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
    }


def gather(trainer: pl.Trainer, own: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the state of every rank. All ranks must call it.

    Args:
        trainer: Whose ranks are asked.
        own: What `capture` returned on this rank; None: as it is now.

    Returns:
        On rank 0 `ranks` (one entry for each) and `metrics`; nothing on the others.
    """
    own = dict(capture(trainer) if own is None else own)
    metrics = own.pop("metrics")
    if trainer.world_size == 1:
        return {"ranks": [own], "metrics": metrics}
    ranks: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
    dist.gather_object(packed(own), ranks)
    return {} if ranks is None else {"ranks": [unpacked(each) for each in ranks], "metrics": metrics}


class RankState:
    """Puts the state of this rank back, each part at the moment that corresponds to the one of its capture.

    Args:
        state: Of the run.
        with_sums: Whether the epoch resumes in its middle, so that what it has summed up counts.

    Attributes:
        begun: Whether the first batch may come.
        sums: Of the epoch that resumes in its middle.
    """

    def __init__(self, state: RunState, with_sums: bool = True) -> None:
        self.state = state
        self.begun = False
        self._with_sums = with_sums
        self.sums = metric_state.RunningSums({"logged": {}, "torchmetrics": {}})

    def before_training(self, trainer: pl.Trainer) -> None:
        """Put back the metrics that callbacks and schedules monitor: without them a schedule would crash."""
        known = compat.monitored_metrics(trainer)
        known.update({name: torch.tensor(value) for name, value in self.state.metrics.items()})

    def before_first_batch(self, trainer: pl.Trainer) -> None:
        """Put back the random number generators, and what the model has summed up in this epoch."""
        self.begun = True
        ranks, rank = self.state.ranks, trainer.global_rank
        if len(ranks) == trainer.world_size:
            set_random_state(trainer, ranks[rank]["random"])
            found = ranks[rank]["sums"]
        else:
            # Another world: no rank is one that it was. Each draws numbers of its own; the sums go to one of them.
            key = [torch.initial_seed(), trainer.global_step, rank]
            entropy = np.random.SeedSequence(key).generate_state(3).tolist()
            torch.manual_seed(entropy[0])
            np.random.seed(entropy[1])
            random.seed(entropy[2])
            found = metric_state.combine([each["sums"] for each in ranks]) if rank == 0 else None
        if found is not None and self._with_sums:
            self.sums = metric_state.RunningSums(found)
        self.sums.before_first_batch(trainer)


def random_state(trainer: pl.Trainer) -> dict[str, Any]:
    """Return the states of torch's, CUDA's, numpy's and Python's global generators."""
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


def set_random_state(trainer: pl.Trainer, state: dict[str, Any]) -> None:
    """Put the states of the global generators back."""
    torch.set_rng_state(state["torch"].cpu())
    device = trainer.strategy.root_device
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, words.cpu().numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))


def generators(owners: dict[str, Any]) -> dict[str, Any]:
    """Return the states of the random number generators that some objects hold as attributes, and their counts.

    Args:
        owners: The objects, by name.

    Returns:
        By `<owner>.<attribute>`, as tensors, numbers, strings and lists.
    """
    counts = {f"{owner}.{name}": vars(holder)[name] for owner, holder, name in _counts(owners)}
    return {name: _generator_state(each) for name, each in _generators(owners).items()} | counts


def set_counts(owners: dict[str, Any], states: dict[str, Any]) -> None:
    """Put the counts back, as far as the objects still hold them."""
    for owner, holder, name in _counts(owners):
        setattr(holder, name, states.get(f"{owner}.{name}", vars(holder)[name]))


def set_generators(owners: dict[str, Any], states: dict[str, Any]) -> None:
    """Put the states of generators and the counts back, as far as the objects still hold them."""
    set_counts(owners, states)
    for name, generator in _generators(owners).items():
        if (state := states.get(name)) is None:
            continue
        if isinstance(generator, torch.Generator):
            generator.set_state(state.cpu())
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = state
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(state)
        else:
            version, internal, gauss = state
            generator.setstate((version, tuple(internal), gauss))


def _generators(owners: dict[str, Any]) -> dict[str, Any]:
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    return {
        f"{owner}.{name}": value
        for owner, holder in owners.items()
        for name, value in getattr(holder, "__dict__", {}).items()
        if isinstance(value, kinds)
    }


def _counts(owners: dict[str, Any]) -> list[tuple[str, Any, str]]:
    """Return what counts the samples that were consumed, as the samplers of Megatron-LM and NeMo do, and its name."""
    holders = ((owner, holder, getattr(holder, "__dict__", {})) for owner, holder in owners.items())
    return [(owner, holder, name) for owner, holder, held in holders for name in _COUNTS if type(held.get(name)) is int]


def _generator_state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return _lists(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return _lists(generator.get_state(legacy=False))
    return _lists(generator.getstate())


def _lists(state: Any) -> Any:
    """Return a generator's state with lists in the place of tuples and arrays."""
    if isinstance(state, dict):
        return {name: _lists(value) for name, value in state.items()}
    if isinstance(state, tuple):
        return [_lists(value) for value in state]
    return state.tolist() if isinstance(state, np.ndarray) else state
