"""A damaged file of arrays is named with its place, and nothing in it is executed."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from pipeline.errors import UserError
from pipeline.formats.array_files import ENDINGS, MappedTensor, read_arrays
from pipeline.formats.files import FileList
from tests.support.formats import npy, put


def read(path: Path, data: bytes) -> dict[str, MappedTensor]:
    put(str(path), data)
    return read_arrays(FileList(str(path), ENDINGS, "Arrays(source)"), 0, None)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i4").reshape(3, 2),
        np.asfortranarray(np.arange(6.0).reshape(3, 2)),
        np.array(["a", "bcd", ""]),
        np.array([b"a", b"bc", b""]),
        np.array([1 + 2j, 3, 4], np.complex64),
        np.array([True, False, True]),
        np.zeros((3, 0), np.float16),
    ],
)
def test_arrays_of_every_kind_are_mapped(array: np.ndarray, tmp_path: Path) -> None:
    for path, data in ((tmp_path / "x.npy", npy(array)), (tmp_path / "y.npz", zipped(x=array))):
        found = read(path, data)["x"]
        rows = found.rows(np.array([2, 0]))
        assert (rows if isinstance(rows, list) else rows.tolist()) == array[[2, 0]].tolist()


def zipped(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def test_types_that_numpy_has_no_name_for_keep_their_bits(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 2).bfloat16(),
        "b": torch.randn(3, 2).to(torch.float8_e4m3fn),
        "c": torch.ones(3) > 0,
    }
    found = read(tmp_path / "x.safetensors", save(tensors))
    for name, value in tensors.items():
        rows = found[name].rows(np.array([2, 1]))
        assert rows.dtype == value.dtype
        assert torch.equal(rows.float(), value[[2, 1]].float())


def safe(header: object, data: bytes = bytes(24)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


GOOD = npy(np.arange(6.0))
CUT, WIDE = [0, 24], [8, 24]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.npy", b"", "header of .npy at byte 0 is damaged"),
        ("x.npy", b"\x93NUMPZ" + GOOD[6:], "header of .npy at byte 0 is damaged"),
        ("x.npy", GOOD[:40], "header of .npy at byte 0 is damaged"),
        ("x.npy", GOOD.replace(b"'descr'", b"'desc' "), "header of .npy at byte 0 is damaged"),
        (
            "x.npy",
            GOOD.replace(b"(6,)", b"(9,)"),
            r"48 bytes lie behind its header, which ends at byte 128, and \(9,\)",
        ),
        ("x.npy", GOOD[:-1], "47 bytes lie behind its header"),
        ("x.npy", npy(np.array([1, "a"], object)), "cannot be mapped to numbers"),
        ("x.npy", npy(np.zeros(2, [("a", "i4")])), "cannot be mapped to numbers"),
        ("x.npz", zipped(x=np.arange(9.0))[:-30], "no whole .npz file"),
        ("x.npz", zipped(x=np.arange(9.0)).replace(b"NUMPY", b"NUMPX", 1), r"x\.npy: the header of .npy at byte \d+"),
        ("x.npz", b"PX" + zipped(x=np.arange(9.0))[2:], r"x\.npy does not begin at byte 0"),
        ("x.safetensors", b"", "no whole safetensors file"),
        ("x.safetensors", safe({}, b"")[:5], "no whole safetensors file"),
        ("x.safetensors", struct.pack("<Q", 1 << 60) + b"{}", "no whole safetensors file"),
        ("x.safetensors", safe({"a": {"dtype": "F32", "shape": [6], "data_offsets": CUT}}, bytes(20)), "end at byte"),
        (
            "x.safetensors",
            safe(
                {
                    "a": {"dtype": "F32", "shape": [6], "data_offsets": CUT},
                    "b": {"dtype": "F32", "shape": [4], "data_offsets": WIDE},
                }
            ),
            "'b' lies at bytes 8 to 24 of the data, and the one before ends at 24",
        ),
        (
            "x.safetensors",
            safe({"a": {"dtype": "F32", "shape": [7], "data_offsets": CUT}}),
            "no whole safetensors file",
        ),
    ],
)
def test_a_damaged_file_is_named_with_its_place(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as raised:
        read(tmp_path / name, data)
    assert name in str(raised.value)


def test_an_archive_that_is_compressed_says_how_to_write_it(tmp_path: Path) -> None:
    out = io.BytesIO()
    np.savez_compressed(out, x=np.zeros(100))
    with pytest.raises(UserError, match=r"write it by numpy\.savez instead"):
        read(tmp_path / "x.npz", out.getvalue())
