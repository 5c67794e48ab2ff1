"""Data are set up as Lightning does it, each stage once; what fails is named and the rest is told."""

from typing import Any

import lightning.pytorch as pl
import pytest
from torch.utils.data import DataLoader

from pipeline.data.datamodule import DataModule
from pipeline.errors import StorageAway, UserError
from pipeline.training.inspection.data_facts import look_at_data
from pipeline.training.inspection.set_facts import DataQuestion
from tests.support.inspected import BringsItsOwn, Streams
from tests.support.models import Regression, Rows, Tampering


def names(source: Any) -> list[str]:
    return [each.name for each in look_at_data(source, DataQuestion()).sets]


class Stages(pl.LightningDataModule):
    """Remembers what was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def prepare_data(self) -> None:
        self.called.append("prepare")

    def setup(self, stage: str) -> None:
        self.called.append(stage)
        self.rows = Rows(10)

    def train_dataloader(self) -> Any:
        return DataLoader(self.rows)

    def val_dataloader(self) -> Any:
        return DataLoader(self.rows)

    def predict_dataloader(self) -> Any:
        return DataLoader(self.rows)


def test_each_stage_is_set_up_once_and_only_those_that_have_loaders() -> None:
    data = Stages()
    assert names(data) == ["train", "val", "predict"]
    assert data.called == ["prepare", "fit", "predict"]


def test_of_the_pipelines_own_data_the_named_sets_are_told() -> None:
    assert names(DataModule(train=Rows(), test=Rows())) == ["train", "test"]


def test_a_subclass_that_brings_another_loader_is_told_by_that_loader() -> None:
    found = look_at_data(Tampering(train=Rows(), val=Rows(), batch_size=8), DataQuestion()).sets
    assert [(each.name, each.fields_of) for each in found] == [("train", "batches"), ("val", "samples")]


def test_a_model_may_bring_its_loaders() -> None:
    assert names(BringsItsOwn()) == ["train"]
    assert names(Regression()) == []


def test_a_stage_that_cannot_be_set_up_leaves_the_others() -> None:
    found = look_at_data(Streams(), DataQuestion())
    assert [each.name for each in found.sets] == ["train", "val['small']", "val['large']"]
    assert list(found.failures) == ["setup('test')"]


def test_data_that_cannot_be_prepared_have_no_sets() -> None:
    class Fails(Stages):
        def prepare_data(self) -> None:
            raise OSError("no space left")

    found = look_at_data(Fails(), DataQuestion())
    assert (found.sets, list(found.failures)) == ([], ["prepare_data()"])


@pytest.mark.parametrize("error", [UserError("it is yours"), StorageAway("it is away")])
def test_what_has_a_meaning_of_its_own_comes_through(error: Exception) -> None:
    class Raises(Stages):
        def setup(self, stage: str) -> None:
            raise error

    with pytest.raises(type(error), match="it is"):
        look_at_data(Raises(), DataQuestion())
