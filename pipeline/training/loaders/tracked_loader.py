"""A training loader of the user's own that can be found again where it stood.

A loader with `state_dict` and `load_state_dict` says itself where it stands. Any other is iterated again as its epoch
was, from the random numbers of that epoch's start, and the batches that were used are skipped: by their indices where
torch's DataLoader draws those from a sampler, else by reading them once more.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.data import sized_len
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from pipeline.errors import UserError
from pipeline.training.loaders.index_sampler import IndicesFrom, generator_owners, same_order
from pipeline.training.loaders.loader_compat import SharedWorkers
from pipeline.training.state import rng_state

log = logging.getLogger(__name__)

_END = object()

UNKNOWN: dict[str, Any] = {
    "batches": 0,
    "exhausted": False,
    "resets": False,
    "start": None,
    "batch_size": None,
    "distributed": False,
    "now": {"random": None, "generators": {}, "state": None},
}
"""A place of which only the batches are known."""


class TrackedLoader(SharedWorkers):
    """A loader as the trainer's fetcher iterates it. Everything but the iteration is the loader's own.

    Args:
        loader: The user's.
        trainer: Whose random number generators the loader may use.
        unused: The most batches that may be fetched and not used where a checkpoint stands.
    """

    def __init__(self, loader: Any, trainer: pl.Trainer, unused: Callable[[], int]) -> None:
        self.loader = loader
        self.trainer = trainer
        self.unused = unused
        self._owners = generator_owners(loader)
        self.fetched = 0
        """Batches of this pass."""
        self._exhausted = False
        self._resets = False
        """Whether this pass uses the workers of the one before, whose seed is drawn no more."""
        self._passes = 0
        self._start: dict[str, Any] | None = None
        self._kept: deque[tuple[int, dict[str, Any]]] = deque()
        self._found: tuple[dict[str, Any], bool] | None = None
        self._unfinished: Iterator[Any] | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)

    @property
    def is_stateful(self) -> bool:
        """Whether the loader says itself where it stands."""
        return all(callable(getattr(self.loader, name, None)) for name in ("state_dict", "load_state_dict"))

    @property
    def has_indices(self) -> bool:
        """Whether batches can be skipped without reading them: in torch's own iteration over a map-style dataset."""
        return (
            isinstance(self.loader, DataLoader)
            and type(self.loader).__iter__ is DataLoader.__iter__
            and not isinstance(self.loader.dataset, IterableDataset)
        )

    def __str__(self) -> str:
        dataset = getattr(self.loader, "dataset", None)
        return f"{type(self.loader).__name__}{'' if dataset is None else f' of {type(dataset).__name__}'}"

    def __iter__(self) -> Iterator[Any]:
        """Begin a pass once its first batch is asked for: by then the sampler knows its epoch."""
        self._finish_pass()
        found, self._found = self._found, None
        self._kept.clear()
        self._exhausted = False
        if found is None:
            self.fetched = 0
            self._resets = self._passes > 0 and self._persistent
            self._start = self._moment()
            batches = iter(self.loader)
        else:
            batches = self._resumed(*found)
            self._unfinished = batches if self.is_stateful else None
        self._passes += 1
        while True:
            if unused := self.unused():
                while len(self._kept) > unused:
                    self._kept.popleft()
                self._kept.append((self.fetched, self._moment(state=True)))
            batch = next(batches, _END)
            if batch is _END:
                self._exhausted = True
                return
            self.fetched += 1
            yield batch

    def place(self, mid: bool, unused: int) -> dict[str, Any]:
        """Return where the loader stands, as tensors, numbers and strings, and what the user's own state is of.

        Args:
            mid: Whether the epoch is in its middle; otherwise its next pass is another one.
            unused: Batches that were fetched and are not used.
        """
        batches = max(self.fetched - unused, 0)
        kept = next((moment for at, moment in self._kept if mid and at == batches), None)
        return {
            "batches": batches,
            "exhausted": batches == self.fetched and (self._exhausted or self._has_all),
            "resets": self._resets if mid else self._passes > 0 and self._persistent,
            "start": self._start,
            "now": self._moment(state=True, random=False) if kept is None else kept,
            "batch_size": self.batch_size,
            "distributed": self.is_distributed,
            "length": sized_len(self.loader),
        }

    def resume(self, place: dict[str, Any], mid: bool) -> None:
        """Begin the next pass where another attempt stood.

        Args:
            place: What `place` returned there.
            mid: Whether to continue the pass of then; otherwise the one after it begins.
        """
        self._found = place, mid

    def rewind(self, place: dict[str, Any], mid: bool) -> None:
        """Have samplers count from where the pass began that `resume` continues, or the next one begins.

        Those of Megatron-LM and NeMo are built to begin where training stands, and may be as long as what is left.
        """
        moment = place["start"] if mid and not place["exhausted"] else place["now"]
        rng_state.set_counts(self._owners, (moment or {}).get("generators", {}))

    def require_whole(self, place: dict[str, Any]) -> None:
        """Refuse a loader that leaves out by itself what is left out where its pass continues.

        Raises:
            UserError: It has just so many batches less.
        """
        whole, now, used = place.get("length"), sized_len(self.loader), place["batches"]
        if not self.is_stateful and used and whole is not None and now == whole - used:
            raise UserError(
                f"the training loader {self} has {now} batches of {whole}: it leaves out the {used} that were used, "
                "which a resume does as well. Build it for the whole epoch, and its place is found; or give it "
                "state_dict and load_state_dict, or the data module load_state_dict, to find it there"
            )

    @property
    def batch_size(self) -> int | None:
        """Samples per batch of this rank, if the loader says it."""
        size = getattr(self.loader, "batch_size", None)
        return size if isinstance(size, int) else None

    @property
    def is_distributed(self) -> bool:
        """Whether the ranks take turns in one order, whatever their number."""
        return isinstance(getattr(self.loader, "sampler", None), DistributedSampler)

    @property
    def _has_all(self) -> bool:
        """Whether all batches of the pass were fetched, after which Lightning does not ask for the end."""
        length = sized_len(self.loader)
        return length is not None and self.fetched >= length

    def _finish_pass(self) -> None:
        """Ask a pass that began from a state for its end: until then some loaders begin each pass from that state."""
        batches, self._unfinished = self._unfinished, None
        if batches is not None and self._has_all:
            with self._drawing(None):
                next(batches, None)

    @property
    def _persistent(self) -> bool:
        return bool(getattr(self.loader, "persistent_workers", False))

    def _resumed(self, place: dict[str, Any], mid: bool) -> Iterator[Any]:
        """Return the batches of a pass from a place on."""
        self.fetched = int(place["batches"]) if mid else 0
        self._resets = bool(place["resets"])
        self._start = place["start"]
        now = place["now"]
        if mid and place["exhausted"]:
            self.resume({**place, "resets": self._persistent}, mid=False)  # that is for the pass after this one
            return iter(())
        if now["state"] is not None and self.is_stateful:
            batches = self._after_state(place, mid)
        elif self.fetched:
            batches = self._after(self.fetched)
        else:
            rng_state.set_generators(self._owners, now["generators"])
            self._start = self._moment()
            batches = self._after(0)
        # What a dataset draws from generators of its own it had drawn by then, whatever was read once more.
        of_dataset = {name: state for name, state in now["generators"].items() if name.startswith("dataset.")}
        rng_state.set_generators(self._owners, of_dataset)
        return self._ahead(batches, now["random"]) if mid and now["random"] is not None else batches

    def _after_state(self, place: dict[str, Any], mid: bool) -> Iterator[Any]:
        """Return the batches of a loader that says itself where it stands.

        Raises:
            UserError: It does not take its state back.
        """
        now, leaves = place["now"], not mid and not place["exhausted"]
        try:
            self.loader.load_state_dict(now["state"])
            with self._drawing(self._start if mid else None), same_order(self.loader, self._rewind if mid else None):
                batches: Iterator[Any] = iter(self.loader)
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"the training loader {self} does not take back its state in the checkpoint ({type(error).__name__}: "
                f"{error}): give the loader, the dataset and the number of workers that the run was trained with, or "
                "start a new run"
            ) from error
        if leaves:
            with self._drawing(None):
                next(batches, None)  # of the pass that the epoch has left before its end
        rng_state.set_generators(self._owners, now["generators"])
        if mid:
            return batches
        self._start = self._moment()
        if leaves:
            return chain(iter(self.loader))
        before = rng_state.random_state(self.trainer)
        if isinstance(self.loader, DataLoader) and not self._resets:
            _draw_worker_seed(self.loader)
        first = next(batches, _END)  # some begin the next pass by themselves
        if first is not _END:
            return chain([first], batches)
        rng_state.set_random_state(self.trainer, before)
        rng_state.set_generators(self._owners, now["generators"])
        return chain(iter(self.loader))

    def _after(self, batches: int) -> Iterator[Any]:
        """Return what is left of a pass after so many batches, in the order that was drawn when it began."""
        if batches:
            epoch, caveat = self.trainer.current_epoch, self._caveat()
            log.info("skipping the %d batches of %s that epoch %d has used%s", batches, self, epoch, caveat)
        if not self.has_indices:
            with self._drawing(self._start if batches else None, undo=batches > 0):
                rest: Iterator[Any] = iter(self.loader)
                for _ in range(batches):
                    if next(rest, _END) is _END:
                        break
                return rest
        name = "sampler" if self.loader.batch_sampler is None else "batch_sampler"
        sampler = vars(self.loader)[name]
        indices = IndicesFrom(sampler, batches)
        # A DataLoader refuses another sampler, lest it did not fit; this one is its own.
        vars(self.loader)[name] = indices
        try:
            with self._drawing(self._start if batches else None, undo=batches > 0):
                if self._resets:
                    indices.begin()
                    rest = _with_new_workers(self.loader)
                else:
                    rest = iter(self.loader)
                    if batches:
                        indices.begin()
                return rest
        finally:
            vars(self.loader)[name] = sampler

    def _caveat(self) -> str:
        """Return what the user should know of skipped batches."""
        if not self.has_indices:
            return ": they are read once more"
        samplers = [each for each in (self.loader.batch_sampler, self.loader.sampler) if each is not None]
        own = [type(each) for each in samplers if type(each).__module__.partition(".")[0] not in ("torch", "lightning")]
        names = " and ".join(dict.fromkeys(each.__name__ for each in own))
        return f": {names} must draw that order again, from its generators and its epoch alone" if own else ""

    def _ahead(self, batches: Iterator[Any], random: dict[str, Any]) -> Iterator[Any]:
        """Fetch the next batch, which had been fetched ahead, with the random numbers of that moment."""
        with self._drawing({"random": random, "generators": {}}):
            head = list(islice(batches, 1))
        return chain(head, batches)

    def _moment(self, state: bool = False, random: bool = True) -> dict[str, Any]:
        """Return what the next batch, or the next pass, depends on."""
        return {
            "random": rng_state.random_state(self.trainer) if random else None,
            "generators": rng_state.generators(self._owners),
            "state": self.loader.state_dict() if state and self.is_stateful else None,
        }

    def _rewind(self) -> None:
        """Draw from here on what was drawn when the pass began."""
        if self._start is not None:
            rng_state.set_random_state(self.trainer, self._start["random"])
            rng_state.set_generators(self._owners, self._start["generators"])

    @contextmanager
    def _drawing(self, moment: dict[str, Any] | None, undo: bool = True) -> Iterator[None]:
        """Draw random numbers as at another moment, None: as now; afterwards the global generators are as before."""
        before = rng_state.random_state(self.trainer)
        if moment is not None:
            rng_state.set_random_state(self.trainer, moment["random"])
            rng_state.set_generators(self._owners, moment["generators"])
        yield
        if undo:
            rng_state.set_random_state(self.trainer, before)


def _with_new_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """Return a pass whose workers begin without the number that those of the pass before did not draw either."""
    generator = loader.generator
    loader.generator = torch.Generator().manual_seed(torch.initial_seed())
    try:
        return iter(loader)
    finally:
        loader.generator = generator


def _draw_worker_seed(loader: DataLoader[Any]) -> None:
    """Draw the number that a DataLoader draws as it begins a pass."""
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
