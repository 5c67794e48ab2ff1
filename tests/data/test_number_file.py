"""Numbers in a `.npy` file are read from any storage; what is damaged or foreign is named."""

from pathlib import Path

import fsspec
import numpy as np
import pytest

from pipeline.data.number_file import read_numbers
from pipeline.errors import UserError


def test_a_file_is_read_from_any_storage(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(5))
    fsspec.filesystem("memory").pipe("/numbers/a.npy", (tmp_path / "a.npy").read_bytes())
    for url in (f"{tmp_path}/a.npy", "memory://numbers/a.npy"):
        assert read_numbers(url, "data.weights").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False"])
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(UserError, match=r"data.weights='.*a.npy' is no file that numpy.save has written"):
        read_numbers(f"{tmp_path}/a.npy", "data.weights")


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"is no file that numpy.save has written"):
        read_numbers(f"{tmp_path}/a.npy", "data.weights")


def test_another_kind_of_file_and_an_unknown_protocol_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be a .npy file"):
        read_numbers("weights.csv", "data.weights")
    with pytest.raises(UserError, match="nope"):
        read_numbers("nope://x/a.npy", "data.weights")
    with pytest.raises(FileNotFoundError):
        read_numbers(f"{tmp_path}/none.npy", "data.weights")
