"""Options of loader processes reach torch's loader, and are refused together where they cannot be."""

from typing import Any

import pytest
import torch

from pipeline.data.datamodule import DataModule
from pipeline.data.loader_options import LoaderOptions
from pipeline.errors import UserError
from tests.support.wished import SIZE, Batched


@pytest.mark.timeout(120)
def test_they_reach_the_loader_and_change_no_sample() -> None:
    options: dict[str, Any] = {"num_workers": 1, "prefetch_factor": 3, "multiprocessing_context": "spawn"}
    data = DataModule(train=Batched(), batch_size=16, **options)
    loader = data.train_dataloader()
    assert (loader.prefetch_factor, loader.persistent_workers, loader.pin_memory) == (3, True, False)
    assert type(loader.multiprocessing_context).__name__ == "SpawnContext"
    plain = DataModule(train=Batched(), batch_size=16).train_dataloader()
    assert all(torch.equal(left[0], right[0]) for left, right in zip(loader, plain, strict=True))
    assert sum(len(batch[0]) for batch in plain) == SIZE


def test_memory_is_pinned_where_that_is_asked_for_or_there_is_a_gpu() -> None:
    for asked, with_gpu, without in ((None, True, False), (True, True, True), (False, False, False)):
        options = LoaderOptions(pin_memory=asked)
        assert options.arguments(on_gpu=True)["pin_memory"] is with_gpu
        assert options.arguments(on_gpu=False)["pin_memory"] is without
    assert DataModule(train=Batched(), pin_memory=True).train_dataloader().pin_memory


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(UserError) as error:
        DataModule(train=Batched(), prefetch_factor=0, multiprocessing_context="thread", num_workers=-1)
    assert [problem.split()[0] for problem in error.value.problems] == [
        "data.num_workers=-1",
        "data.prefetch_factor=0",
        "data.multiprocessing_context='thread'",
    ]
    with pytest.raises(UserError, match=r"data.prefetch_factor=2 is about loader processes, and data.num_workers is 0"):
        DataModule(train=Batched(), prefetch_factor=2)
