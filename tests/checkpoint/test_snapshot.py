"""A snapshot is a copy that shares what its source shares, in memory that the next one reuses."""

import torch

from pipeline.checkpoint.snapshot import Snapshots
from tests.support.checkpoints import tensors


def test_a_snapshot_is_the_same_and_does_not_change_any_more() -> None:
    source = tensors()
    copy = Snapshots().take(source)
    source["weights"].zero_()
    assert torch.equal(copy["weights"], torch.ones(1000))
    assert torch.equal(copy["slice"], torch.ones(10))
    assert copy["tied"].data_ptr() == copy["weights"].data_ptr(), "what is shared is copied once"
    assert copy["slice"].data_ptr() == copy["weights"].data_ptr() + 40
    assert torch.equal(copy["list"][0], torch.arange(5))
    assert copy["list"][1][0].shape == (3, 2)
    assert copy["list"][1][1] == copy["number"] + 4 == 7
    assert copy["half"].dtype == torch.bfloat16
    assert copy["empty"].shape == (0,)


def test_the_next_snapshot_uses_the_memory_of_the_one_before() -> None:
    snapshots = Snapshots()
    first = snapshots.take(tensors())["weights"].data_ptr()
    again = snapshots.take(tensors(2.0))
    assert again["weights"].data_ptr() == first
    assert torch.equal(again["weights"], torch.full((1000,), 2.0))
    smaller = snapshots.take({"other": torch.ones(3)})
    assert torch.equal(smaller["other"], torch.ones(3))
    assert sum(len(buffers) for buffers in snapshots._buffers.values()) == 1, "what is not needed is given back"
