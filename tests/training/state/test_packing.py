"""What ranks send each other arrives as it was."""

from collections import OrderedDict
from typing import Any

import pytest
import torch

from pipeline.training.state.packing import packed, unpacked

TENSORS = {
    "a matrix": torch.arange(6.0).view(2, 3),
    "not contiguous": torch.arange(6.0).view(2, 3).t(),
    "a number": torch.tensor(0.1, dtype=torch.float64),
    "empty": torch.empty(0, 3),
    "truth": torch.tensor([True, False]),
    "brain floats": torch.ones(3, dtype=torch.bfloat16),
    "generator state": torch.get_rng_state(),
    "complex": torch.tensor([1 + 2j]),
    "sparse": torch.eye(3).to_sparse(),
    "with a gradient": torch.ones(2, requires_grad=True),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_arrives_bit_for_bit(name: str) -> None:
    tensor = TENSORS[name]
    made = unpacked(packed({"x": [tensor]}))["x"][0]
    assert (made.dtype, made.shape, made.layout) == (tensor.dtype, tensor.shape, tensor.layout)
    assert torch.equal(made.to_dense() if made.is_sparse else made, tensor.to_dense() if tensor.is_sparse else tensor)


def test_all_else_arrives_as_it_was() -> None:
    value: dict[Any, Any] = {1: ("a", [None, True, 2.5, b"x"]), "o": OrderedDict(b=1, a=2), "p": torch.float16}
    assert unpacked(packed(value)) == value


def test_what_arrives_can_be_written_to() -> None:
    made = unpacked(memoryview(packed(torch.zeros(3))))
    made += 1
    assert made.tolist() == [1, 1, 1]
