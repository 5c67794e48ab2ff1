"""Samples of tar shards, in any order, decoded as webdataset does, on any storage."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.pictures import pixels_of
from pipeline.errors import UserError
from pipeline.formats import TarShards
from tests.support.formats import digits, png, put, tar_bytes, write_shards

X, Y = digits(48)
ROWS = [5, 47, 3, 20, 20, 0]


@pytest.mark.parametrize("cached", [True, False])
def test_samples_are_decoded_by_their_endings(cached: bool, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not cached:
        monkeypatch.setenv("PIPELINE_CACHE_BYTES", "20000")
    write_shards(storage)
    dataset = TarShards(f"{storage}/train-{{000..002}}.tar", mode="L", target="cls", length="txt")
    dataset.prepare_data()
    assert dataset.files.mapped is (cached or "://" not in storage)
    batch = dataset.__getitems__(ROWS)
    assert list(batch) == ["npy", "png", "cls", "txt", "json"]
    assert torch.equal(batch["npy"], torch.from_numpy(X[ROWS]))
    assert batch["png"].shape == (6, 1, 8, 8)
    assert torch.equal(batch["cls"], torch.from_numpy(Y[ROWS]))
    assert batch["txt"] == [f"digit {Y[row]}" for row in ROWS]
    assert batch["json"] == [{"at": row} for row in ROWS]
    assert list(dataset.targets) == Y.tolist()
    assert list(dataset.lengths) == [7] * 48
    assert pixels_of(dataset, 5).shape == (8, 8)
    assert pickle.loads(pickle.dumps(dataset)).fingerprint() == dataset.fingerprint()


def test_columns_are_chosen_with_alternatives_and_the_samples_name(tmp_path: Path) -> None:
    picture = png(np.zeros((2, 3, 3), np.uint8))
    members = [
        ("a.png", picture),
        ("a.cls", b"1"),
        ("b.jpg", png(np.zeros((2, 3, 3), np.uint8), "JPEG")),
        ("b.cls", b"2"),
    ]
    put(str(tmp_path / "a.tar"), tar_bytes(members))
    pictures, names, classes = TarShards(str(tmp_path), ["jpg;png", "__key__", "cls"], as_tuple=True).__getitems__(
        [1, 0]
    )
    assert (pictures.shape, names, classes.tolist()) == ((2, 3, 2, 3), ["b", "a"], [2, 1])
    raw = TarShards(str(tmp_path), ["cls"], decode=False).__getitems__([0, 1])
    assert raw == {"cls": [b"1", b"2"]}
    with pytest.raises(UserError, match=r"1 of 2 samples have no file that ends with 'png'; b has jpg, cls|cls, jpg"):
        len(TarShards(str(tmp_path), ["png"]))
    with pytest.raises(UserError, match="ends with 'clss'; a has png, cls; did you mean 'cls'"):
        len(TarShards(str(tmp_path), ["clss"]))


def test_shards_with_gzip_are_read_through_the_cache(tmp_path: Path) -> None:
    put(str(tmp_path / "a.tar.gz"), gzip.compress(tar_bytes([("a.cls", b"7")])))
    assert int(TarShards(str(tmp_path))[0]["cls"]) == 7


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.cls", b"one", r"a\.cls at byte 512 cannot be decoded: ValueError: invalid literal"),
        ("a.json", b"{", r"a\.json at byte 512 cannot be decoded: JSONDecodeError"),
        ("a.npy", b"\x93NUMPY", r"a\.npy at byte 512 cannot be decoded"),
        ("a.txt", b"\xff", r"a\.txt at byte 512 cannot be decoded: UnicodeDecodeError"),
        ("a.png", b"\x89PNG", r"a\.png at byte 512 \(4 bytes\) is no whole picture"),
        ("a.pkl", pickle.dumps(1), r"a\.pkl at byte 512 could execute code"),
        ("a.pth", b"", r"a\.pth at byte 512 could execute code"),
    ],
)
def test_a_member_that_cannot_be_decoded_is_named(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    put(str(tmp_path / "a.tar"), tar_bytes([(name, data)]))
    with pytest.raises(UserError, match=words) as raised:
        _ = TarShards(str(tmp_path))[0]
    assert "a.tar" in str(raised.value)


def test_shards_without_samples_and_pictures_of_several_sizes_are_named(tmp_path: Path) -> None:
    put(str(tmp_path / "a.tar"), tar_bytes([("README", b"x")]))
    with pytest.raises(UserError, match="holds no samples"):
        len(TarShards(str(tmp_path)))
    pictures = [(f"{size}.png", png(np.zeros((size, 2), np.uint8))) for size in (3, 4)]
    put(str(tmp_path / "a.tar"), tar_bytes(pictures))
    with pytest.raises(UserError, match=r"3\.png at byte 512 has 3 x 2 pixels, and .*4\.png at byte 1536 4 x 2"):
        TarShards(str(tmp_path)).__getitems__([0, 1])
