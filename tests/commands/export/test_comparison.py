"""An output that is not what it should be is found, however it differs."""

from typing import Any

import pytest
import torch

from pipeline.commands.export.comparison import difference
from pipeline.errors import UserError

ONE = torch.tensor([1.0, 2.0, 1000.0])


@pytest.mark.parametrize(
    ("expected", "found", "where"),
    [
        (ONE, ONE + torch.tensor([0, 0, 1.0]), "output 0 differs by 1, allowed are 0.1"),
        (ONE, ONE[:2], r"output 0 is \(2,\) instead of \(3,\)"),
        ({"a": ONE, "b": [ONE]}, (ONE,), "it has 1 outputs instead of 2"),
        (ONE, torch.tensor([1.0, float("nan"), 1000.0]), "differs by inf"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "differs by 1, allowed are 0"),
        (torch.tensor([1, 2**60 + 1]), torch.tensor([1, 2**60 + 3]), "output 0 differs by"),
        (torch.tensor([1 + 1j]), torch.tensor([1 + 2j]), "differs by 1"),
    ],
)
def test_what_differs_is_refused_and_said(expected: Any, found: Any, where: str) -> None:
    with pytest.raises(UserError, match=f"the file does not compute the same as the module: .*{where}.*Nothing was"):
        difference(expected, found, exact=False).require_small("the file", "")


def test_rounding_is_allowed_where_the_order_of_sums_may_differ_and_nowhere_else() -> None:
    close = ONE * (1 + 1e-6)
    assert not difference(ONE, close, exact=False).where
    assert difference(ONE, close, exact=True).where
    assert not difference(ONE, ONE.clone(), exact=True).where
    assert not difference(torch.tensor(float("nan")), torch.tensor(float("nan")), exact=True).where
    assert not difference(torch.zeros(0), torch.zeros(0), exact=False).where
    assert difference({"x": ONE}, [close], exact=False).numbers == 3
