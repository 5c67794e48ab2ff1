"""What would not load again without executing pickled code is named before it is saved."""

import cProfile
import io
from collections import OrderedDict
from dataclasses import dataclass
from datetime import date, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.checkpoint.serializable import plain
from pipeline.checkpoint.snapshot import Snapshots
from pipeline.data.epoch_record import EpochRecord
from pipeline.errors import UserError


def test_numbers_of_numpy_become_pythons_and_all_else_stays() -> None:
    given: dict[Any, Any] = {
        "rate": np.float32(0.5),
        np.int64(3): [np.bool_(True), (1, "two", b"three", None, 4j)],
        "weights": torch.arange(3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "nested": {"ordered": OrderedDict(a=torch.zeros(1))},
    }
    made = plain(given)
    assert type(made["rate"]) is float
    assert list(made) == ["rate", 3, "weights", "parameter", "nested"]
    assert [type(key) for key in made] == [str, int, str, str, str]
    assert made[3] == [True, (1, "two", b"three", None, 4j)]
    assert type(made[3][0]) is bool
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded["weights"], torch.arange(3))
    assert torch.equal(loaded["nested"]["ordered"]["a"], torch.zeros(1))


def test_a_state_dict_is_walked_through_and_not_serialized_to_see_whether_it_loads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = torch.nn.Linear(2, 2).state_dict()
    state["scale"] = np.float64(0.5)
    state._metadata["version"] = np.int64(3)
    monkeypatch.setattr(torch, "save", None)
    made = plain({"state_dict": state})["state_dict"]
    assert type(made) is OrderedDict
    assert made["weight"] is state["weight"]
    assert type(made["scale"]) is float
    assert made._metadata == {**state._metadata, "version": 3}  # type: ignore[attr-defined]
    assert type(made._metadata["version"]) is int  # type: ignore[attr-defined]


def test_all_that_would_not_load_is_named_by_its_path() -> None:
    with pytest.raises(UserError) as raised:
        plain({"a": {"b": [1, Path("x"), Path("z")]}, "ok": 1, "array": np.zeros(2), "keys": {Path("y"): 1}})
    named = [problem.partition(", which no checkpoint can hold")[0] for problem in raised.value.problems]
    kind = f"{type(Path()).__module__}.{type(Path()).__qualname__}"
    assert named == [
        f"a.b[1] (and 1 more like it) is a {kind}",
        "array is a numpy.ndarray",
        f"the key {Path('y')!r} of keys is a {kind}",
    ]


@dataclass
class Figures:
    best: float = 0.0


class Phase(Enum):
    WARMUP = 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros(2), "torch.from_numpy() or .tolist() of it"),
        (date(2026, 1, 1), ".isoformat() of it"),
        (timedelta(1), ".total_seconds() of it"),
        (Phase.WARMUP, ".value of it"),
        (Path("x"), "str() of it"),
        (Figures(), "dataclasses.asdict() of it"),
        (object(), "numbers, strings, tensors, or lists and dictionaries of them"),
    ],
)
def test_what_to_keep_instead_is_said_with_the_place_that_keeps_it(value: Any, words: str) -> None:
    for key, place in (("callbacks", "from state_dict of Mine"), ("mine", "from on_save_checkpoint")):
        with pytest.raises(UserError) as raised:
            plain({key: {"Mine": {"x": value}}})
        assert str(raised.value).endswith(f"Return {words} {place}")
    with pytest.raises(UserError, match=r"ignore=\['x'\]"):
        plain({"hyper_parameters": {"x": value}})


def test_a_record_of_numbers_is_walked_through_without_a_call_for_each() -> None:
    """A save has one for each epoch, and training stops while all of them are captured."""
    calls = {}
    for epochs in (10, 110):
        with cProfile.Profile() as profile:
            records = [EpochRecord(epoch, 0, 100, closed="complete").as_dict() for epoch in range(epochs)]
            Snapshots().take(plain({"ledger": records}))
        calls[epochs] = sum(entry.callcount for entry in profile.getstats())
    assert (calls[110] - calls[10]) / 100 < 120
