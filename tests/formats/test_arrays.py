"""Rows of mapped arrays, from files of every kind and any storage."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.formats import Arrays
from tests.support.formats import digits, npy, put, write_arrays

X, Y = digits(48)
ROWS = [5, 47, 3, 20, 20, 0]


@pytest.mark.parametrize("kind", ["safetensors", "npz", "npy"])
def test_rows_are_the_same_in_every_kind_of_file(kind: str, storage: str) -> None:
    write_arrays(storage)
    several = {"pixels": f"{storage}/pixels.npy", "label": f"{storage}/label.npy"}
    dataset = Arrays(several if kind == "npy" else f"{storage}/rows.{kind}", ["pixels", "label"], target="label")
    dataset.prepare_data()
    batch = dataset.__getitems__(ROWS)
    assert list(batch) == ["pixels", "label"]
    assert torch.equal(batch["pixels"], torch.from_numpy(X[ROWS]))
    assert torch.equal(batch["label"], torch.from_numpy(Y[ROWS]))
    assert list(dataset.targets) == Y.tolist()
    assert len(pickle.dumps(dataset)) < 5000, "files are mapped again, not sent"


def test_what_does_not_belong_together_is_named(tmp_path: Path) -> None:
    write_arrays(str(tmp_path))
    put(str(tmp_path / "short.npy"), npy(np.zeros(47)))
    put(str(tmp_path / "one.npy"), npy(np.array(1.0)))
    put(str(tmp_path / "none.npy"), npy(np.zeros((0, 3))))
    x = f"{tmp_path}/pixels.npy"
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ({"x": x, "y": f"{tmp_path}/short.npy"}, {}, r"must be equal.* x: \(48, 64\), y: \(47,\)"),
        ({"x": x, "y": f"{tmp_path}/one.npy"}, {}, r"must be equal"),
        ({"x": f"{tmp_path}/none.npy"}, {}, "have no rows"),
        (f"{tmp_path}/rows.npz", {"columns": ["pixel"]}, "has no array 'pixel' .*did you mean 'pixels'"),
        (f"{tmp_path}/rows.npz", {"target": "labels"}, "has no array 'labels' .*did you mean 'label'"),
        ({"pixels": x, "y": f"{tmp_path}/rows.npz"}, {}, r"holds no array 'y'; it holds label, pixels"),
        (f"{tmp_path}/nothing.npy", {}, "FileNotFoundError"),
        (f"{tmp_path}/rows.npz", {"target": "pixels"}, "one whole number for each sample"),
    ]
    for source, given, words in cases:
        with pytest.raises(UserError, match=words):
            _ = Arrays(source, **given).targets if given.get("target") == "pixels" else len(Arrays(source, **given))


def test_the_fingerprint_changes_with_the_content(tmp_path: Path) -> None:
    path = put(str(tmp_path / "x.npy"), npy(np.arange(9)))
    first = Arrays(path).fingerprint()
    put(path, npy(np.arange(9)[::-1]))
    assert Arrays(path).fingerprint() != first != Arrays(path, as_tuple=True).fingerprint()
