"""The DataModule for map-style datasets: a user names datasets, the pipeline does the rest."""

import inspect
import logging
from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from pipeline.data.loader_options import LoaderOptions
from pipeline.data.named_sets import named, problems_of
from pipeline.data.orders import Order
from pipeline.data.parts import AnyDataset, everything_in, own_batches_unused
from pipeline.data.sample_ids import fingerprint, identified
from pipeline.data.sampler import Batches, PositionedSampler, Tail
from pipeline.data.seeded import SeededCollate, SeededDataset, SeededLoader
from pipeline.data.wish import Wish, cached
from pipeline.errors import UserError

log = logging.getLogger(__name__)

_DEFAULT_BATCH_SIZE = 32


class DataModule(pl.LightningDataModule):
    """Datasets by class path, each with `__len__` and `__getitem__`.

    Training and validation are spread over all ranks. Training goes through each epoch's permutation, drawn from the
    seed and the epoch, from any position of it; validation goes in order and scores each sample once, for it never
    pads. Testing and prediction read in ascending index order. How a dataset may fetch whole batches and draw random
    numbers is told in `pipeline.data.seeded.SeededDataset`.

    A dataset's constructor runs on all processes at once. What it must download or unpack first belongs into a static
    or class method `prepare_data` of the dataset, which is given the constructor's arguments on one process of each
    node before any constructor runs. An ordinary method `prepare_data()` is called there as well, after the
    constructors, and before anything is asked of the dataset.

    Args:
        train: The training set.
        val: The validation set, or several by name. What is logged of one of several has its name: `val_loss/<name>`.
        test: The test set; one, for a receipt is of one.
        predict: The set to predict on; one.
        batch_size: Samples per batch and process. Default: 32.
        global_batch_size: Instead of `batch_size`: samples per optimizer step, over all processes and accumulated
            batches. It stays the same when the number of processes changes.
        eval_batch_size: Samples per batch and process in validation, test and prediction. Default: training's.
        num_workers: Loader processes per process; 0 loads in the training process.
        prefetch_factor: Batches that each loader process has ready. Default: 2.
        multiprocessing_context: How loader processes are started: `fork`, `spawn` or `forkserver`. Default: Python's.
        pin_memory: Whether batches are put where a GPU reads them faster. Default: if there is one.
        seed: Draws the order of the training samples together with the epoch.
        drop_last: Leave out the training samples that do not fill a batch on every process, instead of repeating a few
            so that they go evenly over the processes.
        collate_fn: Makes a batch of a list of samples. Default: torch's.
        weights: Draw training samples with replacement, in proportion to these: the name of an attribute or method of
            the training set, a `.npy` file on any storage, or a list.
        samples_per_epoch: How many samples `weights` draws in an epoch. Default: as many as there are.
        group_by_length: Train on batches of similar lengths: `true` for the training set's `lengths`, or another name
            or file, as above. It needs `global_batch_size`.
        balance: Train on all classes equally often: `oversample` repeats samples of smaller ones, `undersample` leaves
            out some of larger ones, others in each epoch.
        targets: Where the classes are for `balance`, as above. Default: the training set's `targets`.

    Raises:
        UserError: A number out of its range, or a dataset without a length.
    """

    def __init__(
        self,
        train: AnyDataset | None = None,
        val: AnyDataset | dict[str, AnyDataset] | None = None,
        test: AnyDataset | dict[str, AnyDataset] | None = None,
        predict: AnyDataset | dict[str, AnyDataset] | None = None,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        drop_last: bool = False,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        prefetch_factor: int | None = None,
        multiprocessing_context: str | None = None,
        pin_memory: bool | None = None,
        weights: list[float] | str | None = None,
        samples_per_epoch: int | None = None,
        group_by_length: bool | str = False,
        balance: Literal["oversample", "undersample"] | None = None,
        targets: str | None = None,
    ) -> None:
        self.datasets: dict[str, Any] = {"train": train, "val": val, "test": test, "predict": predict}
        wish = Wish(weights, samples_per_epoch, group_by_length, balance, targets, global_batch_size)
        self._options = LoaderOptions(num_workers, prefetch_factor, multiprocessing_context, pin_memory)
        sizes = {"batch_size": batch_size, "global_batch_size": global_batch_size, "eval_batch_size": eval_batch_size}
        problems = [f"data.{name}={size} must be >= 1" for name, size in sizes.items() if size is not None and size < 1]
        if batch_size is not None and global_batch_size is not None:
            problems.append(
                f"data.batch_size={batch_size} and data.global_batch_size={global_batch_size} both set the batch: turn "
                "one off, --data.batch_size=null or --data.global_batch_size=null"
            )
        problems += self._options.problems() + wish.problems() + problems_of(self.datasets)
        if problems:
            raise UserError(*problems)
        super().__init__()
        self.batch_size = batch_size
        self.global_batch_size = global_batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.drop_last = drop_last
        self.collate_fn = collate_fn
        self.emit_sample_ids = False
        """Whether training batches carry the indices of their samples, for a ledger that takes them off."""
        self._order = cached(wish)
        self._stands_at = (0, 0)
        self._batches: Batches | None = None

    def sets(self, split: str) -> dict[str, Any]:
        """Return the datasets of a split, each with its name: `val`, or `val.<name>` where there are several."""
        return named(split, self.datasets[split])

    @property
    def val_names(self) -> list[str]:
        """The names of several validation sets, none of a single one."""
        found = self.datasets["val"]
        return list(found) if isinstance(found, dict) else []

    def prepare_data(self) -> None:
        """Have each dataset prepare what it reads, and each that it consists of."""
        roots = [root for split in self.datasets for root in self.sets(split).values()]
        found = {id(each): each for root in roots for each in everything_in(root)}
        for dataset in found.values():
            # A static or class method was called before the constructor, which has needed what it prepares.
            early = inspect.getattr_static(type(dataset), "prepare_data", None)
            prepare = getattr(dataset, "prepare_data", None)
            if callable(prepare) and not isinstance(early, (staticmethod, classmethod)):
                prepare()

    def prepare_early(self, prepares: bool) -> None:
        """Do `prepare_data` before Lightning does it, since lengths and contents must be known earlier.

        Args:
            prepares: Whether this process is one of those that prepare data.
        """
        if prepares:
            self.prepare_data()
        self.prepare_data = lambda: None  # type: ignore[method-assign]

    def set_up_early(self) -> None:
        """Do `setup` of a fit before Lightning does it; another one could split the data otherwise."""
        self.setup("fit")
        self.setup = lambda stage: None  # type: ignore[method-assign] # noqa: ARG005

    def check(self, world_size: int, accumulate: int = 1) -> int:
        """Check these data against a world size before training.

        Args:
            world_size: Processes that train.
            accumulate: Batches per optimizer step.

        Returns:
            Training samples per batch and process.

        Raises:
            UserError: The global batch does not go evenly over them, or there are too few samples.
        """
        problems = []
        share = world_size * accumulate
        if self.global_batch_size is not None and self.global_batch_size % share:
            below = self.global_batch_size // share * share
            problems.append(
                f"data.global_batch_size={self.global_batch_size} does not divide by {share} (world size {world_size} "
                f"x accumulate_grad_batches {accumulate}): the nearest that do are "
                f"{' and '.join(str(size) for size in (below, below + share) if size)}"
            )
        train: Any = self.datasets["train"]
        if train is not None and not len(train):
            problems.append(f"data.train={type(train).__name__} is empty: there is nothing to train on")
        problems += [
            f"data.{name} has {len(val)} samples for {world_size} processes: validation never scores a sample twice, "
            "so each process needs one. Use more validation samples or fewer processes"
            for name, val in self.sets("val").items()
            if len(val) < world_size
        ]
        if problems:
            raise UserError(*problems)
        if self.global_batch_size is not None:
            return self.global_batch_size // share
        return self.batch_size or _DEFAULT_BATCH_SIZE

    def resume(self, epoch: int, position: int) -> None:
        """Stand in the middle of an epoch when the training loader is next asked for.

        Args:
            epoch: Counted from 0.
            position: Samples of that epoch that all ranks together have consumed.

        Raises:
            UserError: The training set has fewer samples.
        """
        size = self.epoch_size
        if not 0 <= position <= size:
            each = "" if self.train_order is None else " an epoch"
            raise UserError(
                f"data.train has {size} samples{each}, but the checkpoint stands at position {position} of epoch "
                f"{epoch}: it is another dataset. Give the one that the run was started with, or start a new run"
            )
        self._stands_at = (epoch, position)

    def planned(self, epoch: int, position: int, rank: int = 0, world_size: int = 1, accumulate: int = 1) -> Batches:
        """The training batches of a rank from a position of an epoch on.

        Raises:
            UserError: As `check`, or the samples fill no batch.
        """
        dataset = self._dataset("train")
        batch_size = self.check(world_size, accumulate)
        tail: Tail = "drop" if self.drop_last else "pad"
        where: dict[str, Any] = {"epoch": epoch, "position": position, "order": self.train_order}
        sampler = PositionedSampler(dataset, world_size, rank, seed=self.seed, tail=tail, **where)
        batches = Batches(sampler, batch_size, self.drop_last)
        if not len(batches):
            raise UserError(
                f"data.train has {sampler.size} samples an epoch, which fill no batch of {batch_size} on each of "
                f"{world_size} processes, and data.drop_last=true: use a smaller batch, or drop_last=false"
            )
        return batches

    @property
    def train_order(self) -> Order | None:
        """What weights, lengths or classes make of the order of the training samples; None: a permutation, or no set.

        Raises:
            UserError: The training set lacks what that needs.
            OSError: A file is not there, or its storage does not answer.
        """
        return None if self.datasets["train"] is None else self._order(self.datasets["train"])

    @property
    def epoch_size(self) -> int:
        """Samples that an epoch visits, each time one is visited counted."""
        return len(self._dataset("train")) if self.train_order is None else self.train_order.entries

    @property
    def batches(self) -> Batches | None:
        """The training batches of this rank as the loader was last asked for, None before or without an order."""
        return self._batches

    def reset_order(self) -> None:
        """There is no order until the training loader is asked for, and none if a subclass brings another loader."""
        self._batches = None

    def fingerprints(self) -> dict[str, str]:
        """Return what tells the training and validation sets from others, `<kind> <fingerprint>` each."""
        found = {}
        for split in ("train", "val"):
            each = {name: " ".join(fingerprint(dataset)) for name, dataset in self.sets(split).items()}
            if each:
                several = "; ".join(f"{name.partition('.')[2]} {value}" for name, value in each.items())
                found[split] = each.get(split, several)
        return found

    def train_dataloader(self) -> Any:
        """Shuffled, spread over the ranks, standing where the run stands."""
        dataset = self._dataset("train")
        trainer: Any = self.trainer
        if trainer is not None and trainer.overfit_batches:
            if (order := self.train_order) is not None:
                log.warning("trainer.overfit_batches: the first batches in order, not: %s", order.describe())
            return self._loader(dataset, batch_size=self._per_process())
        # Lightning asks for the iterator before it sets the epoch: a resumed run would replay the order of epoch 0.
        # And it may ask before it has restored its own counters, for trainer.estimated_stepping_batches.
        epoch, position = self._stands_at
        if trainer is not None and trainer.current_epoch > epoch:
            epoch, position = trainer.current_epoch, 0
        world_size, rank = self._ranks()
        self._batches = self.planned(epoch, position, rank, world_size, self._accumulate())
        loader = self._loader(dataset, batch_sampler=self._batches)
        return identified(loader, digests=False, ordered=False) if self.emit_sample_ids else loader

    def val_dataloader(self) -> Any:
        """In order, spread over the ranks without padding; nothing where no validation set is named."""
        sets = self.sets("val")
        if sets:
            self.check(self._ranks()[0], self._accumulate())
        loaders = [self._validation(dataset) for dataset in sets.values()]
        return loaders[0] if len(loaders) == 1 and not self.val_names else loaders

    def _validation(self, dataset: Any) -> DataLoader[Any]:
        trainer: Any = self.trainer
        if trainer is not None and trainer.overfit_batches:
            return self._loader(dataset, batch_size=self._evaluated())
        sampler = PositionedSampler(dataset, *self._ranks(), shuffle=False, tail="keep")
        return self._loader(dataset, batch_sampler=Batches(sampler, self._evaluated()))

    def test_dataloader(self) -> DataLoader[Any]:
        """In ascending index order."""
        return self._loader(self._dataset("test"), batch_size=self._evaluated())

    def predict_dataloader(self) -> DataLoader[Any]:
        """In ascending index order."""
        return self._loader(self._dataset("predict"), batch_size=self._evaluated())

    def _loader(self, dataset: Any, **batching: Any) -> DataLoader[Any]:
        seeded = SeededDataset(dataset, self.seed)
        if not seeded.whole and (slow := own_batches_unused(dataset)):
            log.info(
                "%s is fetched sample by sample: its __getitems__ takes no `seeds`, and it does not say "
                "deterministic = True",
                slow,
            )
        return SeededLoader(
            seeded,
            collate_fn=SeededCollate(self.collate_fn, seeded),
            **self._options._replace(num_workers=self.num_workers).arguments(
                on_gpu=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
            ),
            # Else each iterator would draw from the global generator, and a resumed run would draw once more.
            generator=torch.Generator().manual_seed(self.seed),
            **batching,
        )

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)

    def _accumulate(self) -> int:
        return self.trainer.accumulate_grad_batches if self.trainer is not None else 1

    def _per_process(self) -> int:
        return self.check(self._ranks()[0], self._accumulate())

    def _evaluated(self) -> int:
        return self.eval_batch_size or self._per_process()

    def _dataset(self, split: str) -> Any:
        dataset = self.datasets[split]
        if dataset is None:
            named = ", ".join(name for name, each in self.datasets.items() if each is not None) or "none"
            raise UserError(f"data.{split} names no dataset, and this command needs one; named are: {named}")
        return dataset


def data_of(trainer: pl.Trainer) -> DataModule | None:
    """Return what a trainer trains on, if it is ours: foreign data have no position."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, DataModule) else None
