"""Arrays in numpy's and safetensors' files, memory-mapped: one row of each array is a sample.

data.train: {class_path: pipeline.formats.Arrays, init_args: {source: s3://bucket/rows.safetensors}}
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.formats.array_files import ENDINGS, MappedTensor, read_arrays
from pipeline.formats.batched import Batched, Rows, as_classes, choose
from pipeline.formats.files import FileList


class Arrays(Batched):
    """Several arrays whose first dimensions are equal: (name: row) for each row of theirs.

    Nothing is read but the rows that are asked for: a local file is mapped where it is, a remote one is fetched once a
    node and stays in the cache (`pipeline.cache`).

    Args:
        source: A `.safetensors` or `.npz` file (of numpy.savez, not compressed), which holds arrays by name; or a name
            for each of several `.npy` files: `{x: rows/x.npy, y: rows/y.npy}`. Local paths or any fsspec URLs.
        columns: The arrays to read, in this order. Default: all, a file's in the order of their names.
        target: The array of whole numbers that is the attribute `targets`, by which classes are balanced.
        length: The array of whole numbers that is the attribute `lengths`, by which samples are grouped.
        as_tuple: Whether samples and batches are tuples of the arrays instead of mappings.
        transform: Called with each sample, with seeded generators.

    Raises:
        UserError: There is no such file or array, or it is damaged, or the first dimensions differ.
        StorageAway: The storage does not answer.
    """

    def __init__(
        self,
        source: str | dict[str, str],
        columns: list[str] | None = None,
        target: str | None = None,
        length: str | None = None,
        as_tuple: bool = False,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(transform, as_tuple)
        self.names = list(source) if isinstance(source, Mapping) else None
        urls = list(source.values()) if isinstance(source, Mapping) else source
        self.files = FileList(urls, ENDINGS, "Arrays(source)", fit=False)
        self.columns, self.target, self.length = columns, target, length

    def __getstate__(self) -> dict[str, Any]:
        # Files are mapped again, by their list; what stands in them is found again at once.
        return {name: value for name, value in self.__dict__.items() if name != "_arrays"}

    @cached_property
    def _arrays(self) -> dict[str, MappedTensor]:
        """All arrays by name, those of a sample first."""
        found: dict[str, MappedTensor] = {}
        for at in range(len(self.files)):
            single = self.names[at] if self.names is not None else None
            for name, array in read_arrays(self.files, at, single).items():
                if name in found:
                    raise UserError(f"{self.files.what}: {name!r} stands in several files: name one of them")
                found[name] = array
        where = f"{self.files.what}: {', '.join(map(self.files.url, range(len(self.files))))}"
        for asked, what in ((self.target, "target"), (self.length, "length")):
            choose(None if asked is None else [asked], found, f"Arrays({what})", "array")
        chosen = choose(self.columns, found, where, "array")
        scalars = [name for name in chosen if not found[name].shape]
        sizes = {name: found[name].shape[0] for name in chosen if found[name].shape}
        if scalars or len(set(sizes.values())) != 1:
            shapes = ", ".join(f"{name}: {found[name].shape}" for name in chosen)
            raise UserError(f"{where}: the first dimensions must be equal, one row for each sample, and are {shapes}")
        if not set(sizes.values()) - {0}:
            raise UserError(f"{where}: the arrays have no rows")
        return {name: found[name] for name in [*chosen, *(name for name in found if name not in chosen)]}

    @property
    def _chosen(self) -> list[str]:
        return list(self._arrays) if self.columns is None else list(dict.fromkeys(self.columns))

    def prepare_data(self) -> None:
        """Fetch remote files, once a node."""
        self.files.prepare()
        len(self)

    def __len__(self) -> int:
        return self._arrays[self._chosen[0]].shape[0]

    def fetch(self, indices: Rows) -> dict[str, Any]:
        """Return the rows of a batch."""
        return {name: self._arrays[name].rows(indices) for name in self._chosen}

    @cached_property
    def targets(self) -> Sequence[int]:
        """The values of the array `target`."""
        return self._numbers("target", self.target)

    @cached_property
    def lengths(self) -> Sequence[int]:
        """The values of the array `length`."""
        return self._numbers("length", self.length)

    def _numbers(self, what: str, name: str | None) -> Sequence[int]:
        if name is None:
            raise AttributeError(f"Arrays({what}=...) names no array")
        array = self._arrays[name]
        values: Any = array.rows(np.arange(array.shape[0] if array.shape else 0))
        if not isinstance(values, torch.Tensor) or len(values) != len(self):
            raise UserError(f"Arrays({what}={name!r}) must be one whole number for each of {len(self)} rows")
        return as_classes(values, f"Arrays({what}={name!r})")

    def fingerprint(self) -> str:
        """A digest of the files, and of what is read of them."""
        return self.files.fingerprint("Arrays", self.names, self.columns, self.as_tuple)
