"""The numbers and strings of a checkpoint, read without torch and without running any code that it names.

A checkpoint is a zip file whose `data.pkl` refers to the bytes of its tensors in other entries. Only that entry is
read, however large the checkpoint is.
"""

import pickle
import zipfile
from collections import OrderedDict
from typing import Any

from pipeline.errors import UserError
from pipeline.run import storage
from pipeline.run.retry import patiently
from pipeline.run.storage_errors import is_away, raise_for_user, storage_error

_BLOCK = 1 << 16
"""Bytes read from a storage at once."""


class _Inert:
    """Stands for a tensor, and for any object that a checkpoint would have built by code."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Take what the pickle of a list's subclass holds."""

    def extend(self, values: Any) -> None:
        """Take what the pickle of a list's subclass holds."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Inert

    def persistent_load(self, pid: Any) -> Any:
        return _Inert()


def plain_values(url: str) -> dict[str, Any]:
    """Read a checkpoint file.

    Args:
        url: A local path or any fsspec URL.

    Returns:
        What the file holds: numbers, strings, lists and mappings as they are, all else as objects without content.

    Raises:
        UserError: The file cannot be read, or is no checkpoint.
        StorageAway: Its storage does not answer.
    """
    fs, path = storage.open_filesystem(url, f"checkpoint {url!r}")

    def read() -> Any:
        with fs.open(path, "rb", block_size=_BLOCK) as file, zipfile.ZipFile(file) as archive:
            name = next((each for each in archive.namelist() if each.endswith("data.pkl")), None)
            if name is None:
                raise zipfile.BadZipFile("it has no data.pkl")
            with archive.open(name) as pickled:
                return _PlainUnpickler(pickled).load()  # every class that it names is inert

    try:
        found = patiently(url, read)
        if not isinstance(found, dict):
            raise TypeError(f"it holds a {type(found).__name__}")
    except Exception as error:
        if is_away(error):
            raise_for_user(error, f"{url} cannot be read", "Name a checkpoint file that this user may read")
        raise UserError(f"{url} cannot be read as a checkpoint: {storage_error(error)}") from error
    return found
