"""Rows of tables, in any order, from files of every kind and any storage."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.data import DataModule
from pipeline.errors import UserError
from pipeline.formats import Table
from tests.support.formats import digits, put, table_bytes, write_table

X, Y = digits(48)
ROWS = [5, 47, 3, 20, 20, 0]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream", "lz4"])
def test_rows_are_the_same_in_every_kind_of_file(kind: str, storage: str) -> None:
    dataset = Table(write_table(storage, kind=kind), target="label", length="name")
    dataset.prepare_data()
    batch = dataset.__getitems__(ROWS)
    assert torch.equal(batch["pixels"], torch.from_numpy(X[ROWS]))
    assert torch.equal(batch["label"], torch.from_numpy(Y[ROWS]))
    assert batch["name"] == [f"digit {Y[row]}" for row in ROWS]
    assert list(dataset.targets) == Y.tolist()
    assert list(dataset.lengths) == [7] * 48
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again.__getitems__(ROWS)["pixels"], batch["pixels"])
    assert again.fingerprint() == dataset.fingerprint()


def test_chosen_columns_come_in_their_order(tmp_path: Path) -> None:
    label, pixels = Table(write_table(str(tmp_path)), ["label", "pixels"], as_tuple=True)[7]
    assert (int(label), pixels.tolist()) == (Y[7], X[7].tolist())
    assert not hasattr(Table(str(tmp_path)), "targets"), "nobody has said which column they are"


def test_a_table_larger_than_the_cache_is_read_by_ranges(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(f"{s3}/formats-large")
    monkeypatch.setenv("PIPELINE_CACHE_BYTES", "1000")
    dataset = Table(f"{s3}/formats-large", ["pixels", "label"], decoded_bytes=1)
    assert not dataset.files.mapped
    assert torch.equal(dataset.__getitems__(ROWS)["pixels"], torch.from_numpy(X[ROWS]))


def test_decoded_row_groups_are_kept_within_their_bound(tmp_path: Path) -> None:
    dataset = Table(write_table(str(tmp_path), files=1), decoded_bytes=10_000)
    for row in range(48):
        dataset[row]
    assert 1 <= len(dataset._kept) < 3
    assert sum(size for _, size in dataset._kept.values()) == dataset._kept_bytes <= 10_000


def test_the_data_module_fetches_whole_batches_of_it(tmp_path: Path) -> None:
    data = DataModule(train=Table(write_table(str(tmp_path)), ["pixels", "label"]), batch_size=16)
    batches = list(data.train_dataloader())
    assert [tuple(batch["pixels"].shape) for batch in batches] == [(16, 64)] * 3
    assert sorted(torch.cat([batch["label"] for batch in batches]).tolist()) == sorted(Y.tolist())


def test_a_column_that_does_not_exist_or_differs_is_named(tmp_path: Path) -> None:
    url = write_table(str(tmp_path / "a"))
    for given, words in (
        ({"columns": ["pixel"]}, "has no column 'pixel' .* did you mean 'pixels'"),
        ({"target": "labels"}, r"Table\(target\).* has no column 'labels' .*did you mean 'label'"),
        ({"decoded_bytes": -1}, "must be >= 0"),
    ):
        with pytest.raises(UserError, match=words):
            len(Table(url, **given))  # type: ignore[arg-type]
    put(f"{url}/part-2.parquet", table_bytes(pa.table({"pixels": ["text"], "label": [1], "name": ["x"]}), "parquet"))
    with pytest.raises(
        UserError, match=r"part-2\.parquet has 'pixels' as string, and the first file as fixed_size_list"
    ):
        len(Table(url))
    put(f"{url}/part-2.parquet", table_bytes(pa.table({"label": [1]}), "parquet"))
    with pytest.raises(UserError, match=r"part-2\.parquet has no column 'pixels'"):
        len(Table(url))
    empty = put(str(tmp_path / "empty.parquet"), table_bytes(pa.table({"x": pa.array([], pa.int8())}), "parquet"))
    with pytest.raises(UserError, match="has no rows"):
        len(Table(empty))


def test_lists_of_several_lengths_stay_lists(tmp_path: Path) -> None:
    url = put(
        str(tmp_path / "x.arrow"), table_bytes(pa.table({"ids": [[1], [2, 3], [4]], "f": [1.0, None, 2.0]}), "arrow")
    )
    dataset = Table(url, length="ids")
    batch = dataset.__getitems__([1, 0])
    assert [each.tolist() for each in batch["ids"]] == [[2, 3], [1]]
    assert np.isnan(batch["f"][0])
    assert dataset.__getitems__([0, 2])["ids"].tolist() == [[1], [4]]
    assert list(dataset.lengths) == [1, 2, 1]
