"""The numbers from which the order of a run's epochs was drawn, one for each sample: weights, lengths or classes.

`verify` computes with them which samples each epoch should have used, without the data that they came from.
"""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from pipeline.run.run_dir import RunDir

_FOLDER = "orders"
_DIGITS = 32


def keep(run: RunDir, digest: str, values: npt.NDArray[Any]) -> None:
    """Write them into the run directory, unless they are there.

    Args:
        run: Whose.
        digest: `sha256:<hex>`, of the values.
        values: (samples,)
    """
    if run.size(_name(digest)) is not None:
        return
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    run.create(_name(digest), file.getvalue())


def read(run: RunDir, digest: str) -> npt.NDArray[Any]:
    """Return them.

    Raises:
        ValueError: There are none, or they are damaged.
    """
    name = _name(digest)
    data = run.read(name)
    if data is None:
        raise ValueError(f"{name} is missing")
    try:
        return np.asarray(npy.read_array(io.BytesIO(data), allow_pickle=False))
    except (ValueError, EOFError, SyntaxError) as error:
        raise ValueError(f"{name} is damaged: {error}") from error


def _name(digest: str) -> str:
    hexadecimal = digest.rpartition(":")[2][:_DIGITS]
    if not hexadecimal.isalnum():
        raise ValueError(f"{digest!r} is no digest")
    return f"{_FOLDER}/{hexadecimal}.npy"
