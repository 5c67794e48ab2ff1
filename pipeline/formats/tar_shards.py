"""Tar shards in webdataset's layout, with random access: `000001.jpg`, `000001.cls` are one sample.

data.train: {class_path: pipeline.formats.TarShards, init_args: {source: "s3://bucket/train-{000..099}.tar"}}
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import UserError, did_you_mean, in_one_line
from pipeline.formats.batched import Batched, Rows, as_classes, load_library, stacked
from pipeline.formats.files import FileList
from pipeline.formats.pictures import ENDINGS, Mode, PictureDecoder, stack
from pipeline.formats.tar_index import TarIndex, index_of

KEY = "__key__"
_PICTURES = tuple(ending.lstrip(".") for ending in ENDINGS)
_CODE = ("pkl", "pickle", "pyd", "pth", "pt")
"""What would execute code that comes with the data."""
_SLACK = 1 << 13
"""Bytes between the files of a sample that are read along with them."""


class TarShards(Batched):
    """Samples in tar files: (ending: value) for each sample, in the order in which they lie there.

    Where each file lies is found once a node, and kept in its cache. Local shards are memory-mapped; remote ones are
    fetched once a node where all of them fit into the cache (`PIPELINE_CACHE_BYTES`), else each sample is read by its
    range, those of a batch at once. Values are decoded as webdataset does by the ending (`cls`, `txt`, `json`, `npy`,
    ...), pictures by Pillow, and any other is bytes. What would execute code (`pkl`, `pth`) is refused.

    Args:
        source: Shards as local paths or any fsspec URLs: a folder, a pattern with `*` or braces (`{000..099}`), or
            several.
        columns: The endings to read, in this order; `jpg;png` takes the first that a sample has, `__key__` is its name.
            Default: those of the first sample.
        decode: Whether values are decoded; else all are bytes.
        mode: `RGB` or `L`, of pictures.
        size: Height and width in pixels to which pictures are scaled. Default: as they are.
        target: The ending of the whole numbers that are the attribute `targets`, by which classes are balanced.
        length: The ending of the files whose sizes in bytes are the attribute `lengths`, by which samples are grouped.
        as_tuple: Whether samples and batches are tuples of the columns instead of mappings.
        transform: Called with each sample, with seeded generators.

    Raises:
        UserError: There is no such shard or ending, or one is damaged.
        StorageAway: The storage does not answer.
    """

    def __init__(
        self,
        source: str | list[str],
        columns: list[str] | None = None,
        decode: bool = True,
        mode: Mode = "RGB",
        size: tuple[int, int] | None = None,
        target: str | None = None,
        length: str | None = None,
        as_tuple: bool = False,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(transform, as_tuple)
        self._decoding = load_library("webdataset.autodecode", "shards", "pipeline.formats.TarShards") and decode
        given = [source] if isinstance(source, str) else source
        expand = load_library("braceexpand", "shards", "pipeline.formats.TarShards").braceexpand
        urls = [url for each in given for url in (expand(each) if "{" in each else [each])]
        self.files = FileList(urls, (".tar", ".tar.gz", ".tgz"), "TarShards(source)")
        self.columns, self.target, self.length = columns, target, length
        self.mode, self.size = mode, size

    def prepare_data(self) -> None:
        """Fetch what is to be mapped, and find the samples, once a node."""
        self.files.prepare()
        len(self)

    @cached_property
    def _indices(self) -> list[TarIndex]:
        return [index_of(self.files, at) for at in range(len(self.files))]

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        ends = np.cumsum([len(each.keys) for each in self._indices], dtype=np.int64)
        if not ends[-1]:
            raise UserError(f"{self.files.what}: {', '.join(self.files.given[:3])} holds no samples")
        return ends

    @cached_property
    def _columns(self) -> list[str]:
        if self.columns is not None:
            return list(dict.fromkeys(self.columns))
        first = next(each for each in self._indices if len(each.keys))
        return [part for part, size in zip(first.parts, first.sizes[0].tolist(), strict=True) if size >= 0]

    @cached_property
    def _places(self) -> list[dict[str, npt.NDArray[np.int64]]]:
        """For each shard, and each ending that is asked for, which of the shard's endings each sample takes."""
        asked = dict.fromkeys([*self._columns, *(each for each in (self.target, self.length) if each is not None)])
        return [{name: self._chosen(at, name) for name in asked if name != KEY} for at in range(len(self.files))]

    def _chosen(self, at: int, name: str) -> npt.NDArray[np.int64]:
        index = self._indices[at]
        ways = [index.parts.index(each) for each in name.lower().split(";") if each in index.parts]
        there = index.sizes[:, ways] >= 0
        lacking = np.flatnonzero(~there.any(axis=1))
        if len(lacking):
            key = str(index.keys[lacking[0]])
            has = [part for part, size in zip(index.parts, index.sizes[lacking[0]].tolist(), strict=True) if size >= 0]
            raise UserError(
                f"{self.files.what}: {self.files.url(at)}: {len(lacking)} of {len(index.keys)} samples have no file "
                f"that ends with {name!r}; {key} has {', '.join(has)}{did_you_mean(name, index.parts)}"
            )
        return np.asarray(ways, np.int64)[there.argmax(axis=1)] if len(there) else np.empty(0, np.int64)

    def __len__(self) -> int:
        size = int(self._ends[-1])
        _ = self._places  # what is missing is said at the start
        return size

    def fetch(self, indices: Rows) -> dict[str, Any]:
        """Return the samples of a batch."""
        found: dict[str, list[Any]] = {name: [] for name in self._columns}
        names = [name for name in self._columns if name != KEY]
        places = [self._place(int(index)) for index in indices]
        for (at, row), parts in zip(places, self._read(places, names), strict=True):
            for name in self._columns:
                if name == KEY:
                    found[name].append(str(self._indices[at].keys[row]))
                else:
                    found[name].append(self._decoded(at, row, name, parts[name]))
        return {name: self._batch(name, values, places) for name, values in found.items()} if places else {}

    def _place(self, index: int) -> tuple[int, int]:
        """Return the shard of a sample, and which one of it it is."""
        at = int(np.searchsorted(self._ends, index, side="right"))
        return at, index - (int(self._ends[at - 1]) if at else 0)

    def _part(self, at: int, row: int, name: str) -> tuple[str, int, int]:
        """Return a file's ending, first byte and size."""
        index, column = self._indices[at], int(self._places[at][name][row])
        return index.parts[column], int(index.offsets[row, column]), int(index.sizes[row, column])

    def _read(self, places: Sequence[tuple[int, int]], names: Sequence[str]) -> list[dict[str, bytes]]:
        """Return the files of samples: those that lie side by side by one range."""
        wanted: list[tuple[int, int, int]] = []
        cuts: list[dict[str, tuple[int, int, int]]] = []
        for at, row in places:
            parts = {name: self._part(at, row, name)[1:] for name in names}
            first = min((offset for offset, _ in parts.values()), default=0)
            last = max((offset + size for offset, size in parts.values()), default=0)
            close = last - first <= 2 * sum(size for _, size in parts.values()) + _SLACK
            if close:
                cuts.append(
                    {name: (len(wanted), start - first, start - first + n) for name, (start, n) in parts.items()}
                )
                wanted.append((at, first, last))
            else:
                cuts.append({name: (len(wanted) + more, 0, n) for more, (name, (_, n)) in enumerate(parts.items())})
                wanted += [(at, start, start + n) for start, n in parts.values()]
        came = self.files.ranges(wanted)
        return [{name: came[which][start:end] for name, (which, start, end) in cut.items()} for cut in cuts]

    def _where(self, at: int, row: int, name: str) -> str:
        part, offset, _ = self._part(at, row, name)
        return f"{self.files.what}: {self.files.url(at)}: {self._indices[at].keys[row]}.{part} at byte {offset}"

    def _decoded(self, at: int, row: int, name: str, data: bytes) -> Any:
        part = self._part(at, row, name)[0]
        ending = part.rpartition(".")[2]
        if not self._decoding:
            return data
        if ending in _PICTURES:
            return self._pictures.tensor(data, self._where(at, row, name))
        if ending in _CODE:
            raise UserError(
                f"{self._where(at, row, name)} could execute code when it is read. Leave it out of columns, write it "
                "as npy or json, or take it as bytes (decode: false)"
            )
        try:
            value = load_library("webdataset.autodecode", "shards", "TarShards").basichandlers(ending, data)
        except Exception as error:
            raise UserError(
                f"{self._where(at, row, name)} cannot be decoded: {in_one_line(error)}. Replace it"
            ) from error
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            return torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
        return data if value is None and ending not in ("json", "jsn") else value

    @cached_property
    def _pictures(self) -> PictureDecoder:
        return PictureDecoder(self.mode, self.size, "TarShards")

    def _batch(self, name: str, values: list[Any], places: Sequence[tuple[int, int]]) -> Any:
        endings = {self._part(at, row, name)[0].rpartition(".")[2] for at, row in places} if name != KEY else set()
        if self._decoding and endings and endings <= set(_PICTURES) and self.transform is None:
            return stack(values, [self._where(*place, name) for place in places], "Give size: [height, width]")
        return stacked(values)

    def picture(self, index: int) -> Any:
        """The picture of a sample for the report, or a number field as it is."""
        at, row = self._place(index)
        name = next((each for each in self._columns if self._is_picture(at, row, each)), None)
        if name is None:
            raise ValueError(f"{self._indices[at].keys[row]} has no picture among {', '.join(self._columns)}")
        return self._pictures.pixels(self._read([(at, row)], [name])[0][name], self._where(at, row, name))

    def _is_picture(self, at: int, row: int, name: str) -> bool:
        return name != KEY and self._part(at, row, name)[0].rpartition(".")[2] in _PICTURES

    @cached_property
    def targets(self) -> Sequence[int]:
        """The whole numbers in the files that end with `target`."""
        if self.target is None:
            raise AttributeError("TarShards(target=...) names no ending")
        found: list[int] = []
        for start in range(0, len(self), 4096):
            places = [self._place(index) for index in range(start, min(start + 4096, len(self)))]
            for (at, row), parts in zip(places, self._read(places, [self.target]), strict=True):
                try:
                    found.append(int(parts[self.target]))
                except ValueError as error:
                    raise UserError(f"{self._where(at, row, self.target)} is no whole number: {error}") from error
        return as_classes(np.asarray(found, np.int64), "TarShards(target)")

    @cached_property
    def lengths(self) -> Sequence[int]:
        """The bytes of the files that end with `length`."""
        if self.length is None:
            raise AttributeError("TarShards(length=...) names no ending")
        places = [self._place(index) for index in range(len(self))]
        return [self._part(at, row, self.length)[2] for at, row in places]

    def fingerprint(self) -> str:
        """A digest of the shards, and of what is read of them."""
        how = (self._columns, self.as_tuple, bool(self._decoding), self.mode, self.size)
        return self.files.fingerprint("TarShards", *how)
