"""A digest tells contents apart, never fails, and is the same in every process that holds equal data."""

import subprocess
import sys
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch

from pipeline.data.content_digest import digest, row_digests
from pipeline.data.whole_batch import rows
from tests.support.commands import ROOT
from tests.support.models import Mixed

WORDS = [f"word {number}" for number in range(20)]


class Color(Enum):
    RED = 1


class Plain:
    """Holds a set, whose order follows the process."""

    def __init__(self, more: Any = None) -> None:
        self.words, self.more = set(WORDS), more


class Locked(Plain):
    """Holds what pickle refuses."""

    def __init__(self, more: Any = None) -> None:
        super().__init__(more)
        self.lock, self.file = threading.Lock(), Path(__file__).open()  # noqa: SIM115


class Broken:
    """Refuses to be pickled."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("not me")


@dataclass
class Annotated:
    words: set[str] = field(default_factory=lambda: set(WORDS))
    where: Path = Path("x")


def closure(number: int) -> Any:
    return lambda value: value + number


def itself() -> list[Any]:
    made: list[Any] = [1]
    made.append(made)
    return made


def deep() -> list[Any]:
    made: list[Any] = []
    for _ in range(100_000):
        made = [made]
    return made


def objects() -> dict[str, Any]:
    """Samples of every kind, made again."""
    sparse = torch.eye(3).to_sparse()
    return {
        "set": set(WORDS),
        "sets in sets": {frozenset(WORDS[:3]), frozenset(WORDS[3:])},
        "keys": {frozenset(WORDS): 1, (1, "a"): 2},
        "object": Plain(),
        "locked": Locked(),
        "broken": Broken(),
        "dataclass": Annotated(),
        "others": [Path("a"), date(2020, 1, 2), UUID(int=3), Decimal("1.5"), Color.RED, range(3), deque([1])],
        "ordered": OrderedDict(a={1}, b={2}),
        "function": closure(3),
        "class": Plain,
        "generator": (number for number in range(3)),
        "itself": itself(),
        "deep": deep(),
        "object array": np.array([set(WORDS), "a", None], dtype=object),
        "records": np.array([(1, "a")], dtype=[("number", "i4"), ("any", "O")]),
        "masked": np.ma.masked_array([1, 2], mask=[True, False]),
        "sparse": sparse,
        "csr": torch.eye(3).to_sparse_csr(),
        "csc": torch.eye(3).to_sparse_csc(),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "negative": torch.tensor([1 + 2j]).conj().imag,
        "meta": torch.empty(2, device="meta"),
        "bits": torch.tensor([True]),
        "grad": torch.ones(2, requires_grad=True) * 2,
    }


CODE = (
    "from tests.data.test_content_digest import objects, digest\n"
    "print({name: digest(value)[0].hex() for name, value in objects().items()})"
)


@pytest.mark.parametrize("name", objects())
def test_anything_has_a_digest(name: str) -> None:
    first, again = (digest(objects()[name]) for _ in range(2))
    assert first == again
    assert len(first[0]) == 32


def test_equal_data_have_the_same_digests_in_every_process() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", CODE],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_what_has_no_canonical_form_still_tells_contents_apart() -> None:
    pairs = [
        (Plain(1), Plain(2)),
        (Locked(1), Locked(2)),
        (closure(1), closure(2)),
        (np.array([1, "a"], dtype=object), np.array([1, "b"], dtype=object)),
        (torch.eye(3).to_sparse(), 2 * torch.eye(3).to_sparse()),
        (torch.eye(3).to_sparse_csr(), 2 * torch.eye(3).to_sparse_csr()),
        (torch.tensor([1 + 2j]).conj(), torch.tensor([1 + 2j])),
        (np.ma.masked_array([1, 2], mask=[True, False]), np.ma.masked_array([1, 2], mask=[False, False])),
        (Path("a"), Path("b")),
    ]
    for left, right in pairs:
        assert digest(left)[0] != digest(right)[0], (left, right)
    assert [digest(each)[1] for each in ({1}, Plain(), Locked(), closure(1), itself())] == [True, *[False] * 4]
    assert digest(torch.tensor([1 - 2j]))[0] == digest(torch.tensor([1 + 2j]).conj())[0], "the same numbers"


def test_every_kind_of_content_counts_in_thedigest() -> None:
    first = [digest(Mixed()[index]) for index in range(3)]
    again = [digest(Mixed()[index]) for index in range(3)]
    other = [digest(Mixed(twist=0.5)[index]) for index in range(3)]
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
        ({1, 2}, {1, 3}),
        ({1, 2}, [1, 2]),
        (frozenset("ab"), frozenset("abc")),
        (bytearray(b"1"), b"1"),
    ]
    for left, right in pairs:
        assert digest(left)[0] != digest(right)[0], (left, right)
    assert digest(torch.ones(2).to(torch.bfloat16))[1]


X = torch.arange(6.0).reshape(2, 3)
GOLDEN = {
    "5b80b2cd5716c7d1": (X, torch.tensor(3)),
    "211914b0d0dbd751": [X.T, np.arange(3, dtype=np.int16), np.float32(1.5)],
    "e460536733202e4d": {"b": X.bool(), "a": "text", 1: None},
    "d1ce0665b0854dd2": (torch.zeros(0, 3), np.zeros((2, 0))),
    "ec84d355cfde5152": [b"1", bytearray(b"2"), 2.5, 1j],
    "70f096a990c2d464": (X + 1).requires_grad_(),
    "e30cfadc76daae7b": OrderedDict(z=X[:, 1], a=[1, [2]]),
}


@pytest.mark.parametrize("expected", GOLDEN)
def test_the_digest_of_content_never_changes(expected: str) -> None:
    # Whoever changes these has two receipts of the same data differ.
    found, canonical = digest(GOLDEN[expected])
    assert (found.hex()[:16], canonical) == (expected, True)


WHOLE: dict[str, Any] = {
    "tuple": (torch.rand(5, 7), torch.arange(5)),
    "mapping": {"b": torch.rand(5, 2, 3), "a": np.arange(5, dtype=">i2"), "\udce9": np.ones((5, 2), bool)},
    "tensor": torch.rand(5, 3)[:, ::2],
    "array": np.arange(10).reshape(2, 5).T,
    "complex": (torch.ones(4, 2, dtype=torch.complex64), np.arange(8, dtype=">f8").reshape(4, 2)),
}
OTHER: dict[str, Any] = {
    "bfloat16": (torch.ones(2).bfloat16(),),
    "gradient": torch.ones(2, requires_grad=True),
    "texts": (torch.ones(2), ["a", "b"]),
    "array of texts": np.array(["a", "bc"]),
    "objects": np.array([1, "a"], dtype=object),
    "masked": np.ma.masked_array([1, 2], mask=[True, False]),
    "nothing": torch.ones(2, 0),
    "sparse": torch.eye(2).to_sparse(),
    "keys": {1: torch.ones(2)},
}


@pytest.mark.parametrize("kind", WHOLE)
def test_the_rows_of_a_whole_batch_have_the_digests_of_its_samples(kind: str) -> None:
    assert row_digests(WHOLE[kind]) == [digest(row)[0] for row in rows(WHOLE[kind])]


@pytest.mark.parametrize("kind", OTHER)
def test_a_batch_of_anything_else_is_digested_sample_by_sample(kind: str) -> None:
    assert row_digests(OTHER[kind]) is None
