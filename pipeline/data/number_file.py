"""One number for each sample in a `.npy` file, on any storage."""

from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from pipeline.errors import UserError, install_command

_DAMAGED = (ValueError, EOFError, SyntaxError, UnicodeDecodeError)


def is_file(source: str) -> bool:
    """Return whether a text names a file, and not an attribute of a dataset."""
    return source.endswith(".npy")


def read_numbers(url: str, name: str) -> npt.NDArray[Any]:
    """Return the array in a `.npy` file.

    Args:
        url: A local path or any fsspec URL.
        name: Of what it is given for.

    Raises:
        UserError: It is no such file, or cannot be reached with what is installed.
        OSError: It is not there, or its storage does not answer.
    """
    if not is_file(url):
        raise UserError(f"{name}={url!r} must be a .npy file, as numpy.save writes it")
    try:
        with fsspec.open(url, "rb") as file:
            return np.asarray(npy.read_array(file, allow_pickle=False))
    except _DAMAGED as error:
        raise UserError(f"{name}={url!r} is no file that numpy.save has written: {error}") from error
    except ImportError as error:
        raise UserError(f"{name}={url!r}: {error}. s3:// needs the extra: {install_command('s3')}") from error
