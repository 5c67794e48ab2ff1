"""Datasets of Hugging Face's library, saved or as files, on any storage, without the hub."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.formats import HuggingFace
from tests.support.commands import command
from tests.support.formats import digits, put, write_saved, write_table

X, Y = digits(48)
ROWS = [5, 47, 3, 20, 20, 0]


def lines(url: str) -> str:
    rows = [{"pixels": [float(each) for each in x], "label": int(y)} for x, y in zip(X, Y, strict=True)]
    put(f"{url}/rows.jsonl", "\n".join(map(json.dumps, rows)).encode())
    return url


@pytest.mark.parametrize("kind", ["saved", "parquet", "json"])
def test_rows_are_the_same_however_they_are_stored(kind: str, storage: str) -> None:
    write: Any = {"saved": write_saved, "parquet": write_table, "json": lines}[kind]
    dataset = HuggingFace(write(storage), columns=["label", "pixels"], target="label", length="pixels")
    dataset.prepare_data()
    batch = dataset.__getitems__(ROWS)
    assert list(batch) == ["label", "pixels"]
    assert torch.equal(batch["pixels"], torch.from_numpy(X[ROWS]))
    assert torch.equal(batch["label"], torch.from_numpy(Y[ROWS]))
    assert list(dataset.targets) == Y.tolist()
    assert list(dataset.lengths) == [64] * 48
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again.__getitems__(ROWS)["pixels"], batch["pixels"])
    assert again.fingerprint() == dataset.fingerprint()


def test_a_split_of_several_is_chosen_by_its_name(storage: str) -> None:
    write_saved(f"{storage}/train")
    write_saved(f"{storage}/test", 8)
    put(f"{storage}/dataset_dict.json", b'{"splits": ["train", "test"]}')
    assert len(HuggingFace(storage, "test")) == 8
    for split, words in (("tset", "must be one of train, test; did you mean 'test'"), (None, "must be one of")):
        with pytest.raises(UserError, match=words):
            HuggingFace(storage, split)
    with pytest.raises(UserError, match="one dataset, without splits"):
        HuggingFace(f"{storage}/train", "train")


def test_what_is_damaged_or_not_there_is_named(tmp_path: Path) -> None:
    saved = write_saved(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"has no column 'labels' .*did you mean 'label'"):
        len(HuggingFace(saved, columns=["labels"]))
    part = next((tmp_path / "saved").glob("*00001-of*.arrow"))
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{part.name}: its {len(whole) // 2} bytes are no whole Arrow file"):
        len(HuggingFace(saved))
    part.unlink()
    with pytest.raises(UserError, match=rf"{part.name} cannot be listed: FileNotFoundError"):
        HuggingFace(saved)
    (tmp_path / "saved/state.json").write_text('{"_data_files": [1')
    with pytest.raises(UserError, match=r"state\.json is damaged"):
        HuggingFace(saved)
    (tmp_path / "saved/state.json").unlink()
    with pytest.raises(UserError, match=r"has no state\.json beside its \.arrow files"):
        HuggingFace(saved)
    with pytest.raises(UserError, match=r"no file that ends with \.arrow, \.parquet, \.json, \.jsonl"):
        HuggingFace(str(Path(put(str(tmp_path / "t/a.txt"), b"x")).parent))
    put(str(tmp_path / "rows/a.jsonl"), b'{"a": 1}\n{"a": ')
    with pytest.raises(UserError, match=r"a\.jsonl: datasets cannot read it: ArrowInvalid: JSON parse error"):
        len(HuggingFace(str(tmp_path / "rows")))
    write_table(str(tmp_path / "rows"), files=1)
    with pytest.raises(UserError, match="must be files of one kind"):
        len(HuggingFace(str(tmp_path / "rows")))
    (tmp_path / "rows/a.jsonl").unlink()
    parquet = tmp_path / "rows/part-0.parquet"
    parquet.write_bytes(parquet.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"part-0\.parquet: its \d+ bytes are no whole Parquet file"):
        len(HuggingFace(str(tmp_path / "rows")))


def test_nothing_is_asked_of_the_network(tmp_path: Path) -> None:
    url = write_table(str(tmp_path / "rows"))
    program = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('it went to the network')\n"
        "socket.getaddrinfo = socket.socket.connect = refuse\n"
        f"from pipeline.formats import HuggingFace\nassert len(HuggingFace({url!r})) == 48\n"
    )
    import sys

    environment = {"HF_HUB_OFFLINE": "0", "PIPELINE_CACHE_DIR": str(tmp_path / "cache"), "HOME": os.devnull}
    ended = command(sys.executable, "-c", program, env=environment)
    assert ended.status == 0, ended.text
    assert "Generating" not in ended.text, "no bar of each process"
    assert list((tmp_path / "cache/huggingface").rglob("*.arrow")), "converted where the cache is"
