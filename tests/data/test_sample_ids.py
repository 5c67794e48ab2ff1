"""Each sample carries its index and a digest of its content through collate function, workers and wrappers."""

from typing import Any

import numpy as np
import torch

from pipeline.data.sample_ids import _digest
from tests.support.models import Mixed


def test_every_kind_of_content_counts_in_the_digest() -> None:
    first = [_digest(Mixed()[index]) for index in range(3)]
    again = [_digest(Mixed()[index]) for index in range(3)]
    other = [_digest(Mixed(twist=0.5)[index]) for index in range(3)]
    assert first == again
    assert len({digest for digest, _ in (*first, *other)}) == 6
    assert all(canonical for _, canonical in first)
    pairs: list[tuple[Any, Any]] = [
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (np.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (["ab", "c"], ["a", "bc"]),
        ([1, [2]], [[1], 2]),
        (b"1", "1"),
        (1, True),
        ({"a": 1}, {"b": 1}),
        (torch.zeros(0, 3), torch.zeros(3, 0)),
    ]
    for left, right in pairs:
        assert _digest(left)[0] != _digest(right)[0], (left, right)
    assert _digest(torch.ones(2).to(torch.bfloat16))[1]
    assert not _digest({1, 2})[1]
