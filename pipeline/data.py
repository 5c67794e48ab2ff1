"""The DataModule for map-style datasets: a user names datasets, the pipeline does the rest."""

from typing import TYPE_CHECKING, Any, TypeAlias

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from pipeline.errors import UserError

if TYPE_CHECKING:
    AnyDataset: TypeAlias = Dataset[Any]
else:
    # jsonargparse takes a parametrised generic for a type without arguments of its own.
    AnyDataset = Dataset


class DataModule(pl.LightningDataModule):
    """Datasets by class path, each with `__len__` and `__getitem__`.

    Training and validation are spread over all ranks by a DistributedSampler, whose order is drawn from the run's seed
    and the epoch. Testing and prediction read in ascending index order.

    Args:
        train: The training set.
        val: The validation set.
        test: The test set.
        predict: The set to predict on.
        batch_size: Samples per batch and process.
        num_workers: Loader processes per process; 0 loads in the training process.
        seed: Draws the order of the training samples together with the epoch.

    Raises:
        UserError: A number out of its range.
    """

    def __init__(
        self,
        train: AnyDataset | None = None,
        val: AnyDataset | None = None,
        test: AnyDataset | None = None,
        predict: AnyDataset | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        problems = []
        if batch_size < 1:
            problems.append(f"data.batch_size={batch_size}: allowed are 1 and more samples per process")
        if num_workers < 0:
            problems.append(f"data.num_workers={num_workers}: allowed are 0 and more loader processes")
        if problems:
            raise UserError(*problems)
        super().__init__()
        self.datasets = {"train": train, "val": val, "test": test, "predict": predict}
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

    @property
    def position(self) -> int:
        """Samples of the current epoch consumed by all ranks together: checkpoints stand at an epoch's start."""
        return 0

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, spread over the ranks, standing at the trainer's current epoch."""
        sampler = self._spread("train", shuffle=True)
        # Lightning asks for the iterator before it sets the epoch: a resumed run would replay the order of epoch 0.
        sampler.set_epoch(self.trainer.current_epoch if self.trainer else 0)
        return self._loader("train", sampler)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """In order, spread over the ranks; nothing where no validation set is named."""
        if self.datasets["val"] is None:
            return []
        return self._loader("val", self._spread("val", shuffle=False))

    def test_dataloader(self) -> DataLoader[Any]:
        """In ascending index order."""
        return self._loader("test", None)

    def predict_dataloader(self) -> DataLoader[Any]:
        """In ascending index order."""
        return self._loader("predict", None)

    def _spread(self, split: str, shuffle: bool) -> DistributedSampler[Any]:
        ranks = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return DistributedSampler(self._dataset(split), *ranks, shuffle=shuffle, seed=self.seed)

    def _loader(self, split: str, sampler: DistributedSampler[Any] | None) -> DataLoader[Any]:
        return DataLoader(
            self._dataset(split),
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _dataset(self, split: str) -> Any:
        dataset = self.datasets[split]
        if dataset is None:
            named = ", ".join(name for name, each in self.datasets.items() if each is not None) or "none"
            raise UserError(f"data.{split} names no dataset, and this command needs one; named are: {named}")
        return dataset
