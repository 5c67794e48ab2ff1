"""What an order was drawn from is kept in the run directory once, and never trusted."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.run import order_values
from pipeline.run.run_dir import RunDir

DIGEST = "sha256:" + "0123456789abcdef" * 4


def test_it_is_written_once_and_read_as_it_was(storage: str) -> None:
    run, values = RunDir(storage), np.arange(5, dtype=np.float64)
    order_values.keep(run, DIGEST, values)
    order_values.keep(run, DIGEST, values * 2)
    assert order_values.read(run, DIGEST).tolist() == values.tolist()
    assert run.names("orders") == ["0123456789abcdef0123456789abcdef.npy"]


@pytest.mark.parametrize("data", [None, b"", b"\x93NUMPY", b"PK\x03\x04"])
def test_what_is_missing_or_damaged_is_named(tmp_path: Path, data: bytes | None) -> None:
    run = RunDir(str(tmp_path))
    if data is not None:
        run.write("orders/0123456789abcdef0123456789abcdef.npy", data)
    with pytest.raises(ValueError, match=r"orders/0123456789abcdef0123456789abcdef\.npy is (missing|damaged)"):
        order_values.read(run, DIGEST)
    with pytest.raises(ValueError, match="is no digest"):
        order_values.read(run, "sha256:../x")
