"""Every private member of Lightning's around loaders that this project builds on, and why; see `compat`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.trainer.connectors import data_connector
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.combined_loader import _MaxSizeCycle, _ModeIterator
from torch.utils.data import DataLoader

from pipeline.training.compat import Member, check

MEMBERS = (
    Member(_FitLoop, "_load_combined_loader_states", (), "is called once the training loaders are known"),
    Member(_FitLoop, "_combined_loader", None, "has the training loaders"),
    Member(_FitLoop, "_data_fetcher", None, "fetches their batches"),
    Member(data_connector, "_parse_num_batches", ("stage", "length", "limit_batches"), "limits a loader by its length"),
    Member(DataLoader, "_iterator", None, "is how Lightning shuts down loader workers"),
    Member(CombinedLoader, "_flattened", None, "is what is iterated"),
    Member(CombinedLoader, "_iterator", None, "counts the batches of an epoch"),
    Member(_ModeIterator, "_idx", None, "is the number of the next batch"),
    Member(_MaxSizeCycle, "_consumed", None, "tells which loaders have begun again"),
    Member(_EvaluationLoop, "_results", None, "has what is logged of each of several validation sets"),
    Member(_ResultCollection, "_forked_name", ("result_metric", "on_step"), "appends DATALOADER_SUFFIX to its name"),
    Member(_ResultCollection, "DATALOADER_SUFFIX", None, "is what several validation sets are told apart by"),
)


def on_loaders_ready(trainer: pl.Trainer, ready: Callable[[CombinedLoader], None]) -> None:
    """Call a function whenever the trainer has asked for its training loaders, before it iterates them."""
    loop = trainer.fit_loop
    stock = loop._load_combined_loader_states

    def load() -> None:
        stock()
        if loop._combined_loader is not None:
            ready(loop._combined_loader)

    loop._load_combined_loader_states = load  # type: ignore[method-assign]


def iterate_instead(combined: CombinedLoader, loaders: list[Any]) -> None:
    """Have the trainer iterate other objects, while `trainer.train_dataloader` stays what the user gave."""
    combined._flattened = loaders


def limit(trainer: pl.Trainer, combined: CombinedLoader) -> None:
    """Limit the batches of each loader by its length now, as Lightning has done by its length before."""
    lengths = [sized_len(loader) for loader in combined.flattened]
    combined.limits = [
        data_connector._parse_num_batches(
            RunningStage.TRAINING, float("inf") if length is None else length, trainer.limit_train_batches
        )
        for length in lengths
    ]


class SharedWorkers:
    """What wraps a loader in `loader`, and has its workers, so that Lightning shuts them down."""

    loader: Any

    @property
    def _iterator(self) -> Any:
        return self.loader._iterator

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        self.loader._iterator = value


class _Suffix(NamedTuple):
    """What follows the name of a metric, in the place of Lightning's `/dataloader_idx_{}`."""

    names: Sequence[str]

    def format(self, index: int) -> str:
        return f"/{self.names[index]}"


def name_validation_sets(trainer: pl.Trainer, names: Sequence[str]) -> None:
    """Have what is logged of several validation sets carry their names, `val_loss/<name>`, if they have any."""
    for loop in () if not names else (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop):
        loop._results.DATALOADER_SUFFIX = _Suffix(names)  # type: ignore[assignment]


def batches_ahead(trainer: pl.Trainer, most: bool = False) -> int:
    """Return how many batches are fetched and not used: now, or at most, which is one where they have no length."""
    fetcher = trainer.fit_loop._data_fetcher
    if not isinstance(fetcher, _PrefetchDataFetcher):
        return 0
    return len(fetcher.batches) if not most else fetcher.prefetch_batches if fetcher.length is None else 0


def combined_progress(trainer: pl.Trainer) -> tuple[int, list[bool] | None]:
    """Return the batches that the training loaders have given together in this pass, and which have begun again."""
    iterator = getattr(trainer.fit_loop._combined_loader, "_iterator", None)
    return getattr(iterator, "_idx", 0), list(getattr(iterator, "_consumed", ())) or None


def set_combined_progress(trainer: pl.Trainer, batches: int, cycled: list[bool] | None) -> None:
    """Set what `combined_progress` returns; what was fetched ahead counts beside."""
    iterator: Any = getattr(trainer.fit_loop._combined_loader, "_iterator", None)
    iterator._idx += batches
    if cycled is not None and isinstance(iterator, _MaxSizeCycle):
        iterator._consumed = [now or then for now, then in zip(iterator._consumed, cycled, strict=True)]


check(MEMBERS)
