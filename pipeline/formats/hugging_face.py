"""Datasets of Hugging Face's library: as `save_to_disk` wrote them, or in Parquet and JSON files.

data.train: {class_path: pipeline.formats.HuggingFace, init_args: {source: s3://bucket/squad, split: train}}
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from pipeline.cache.folder import cache_folder
from pipeline.errors import StorageAway, UserError, chain, did_you_mean, in_one_line
from pipeline.formats import arrow_values
from pipeline.formats.arrow_files import ArrowFile
from pipeline.formats.batched import Batched, Rows, as_classes, choose, load_library
from pipeline.formats.files import FileList

_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}
_WHAT = "HuggingFace(source)"


class HuggingFace(Batched):
    """The rows of a dataset, as `datasets` gives them with the format `torch`: (column: value).

    Remote files are fetched once a node, by the cache of this pipeline. What `save_to_disk` wrote is then mapped as it
    is; Parquet and JSON are converted by the library, once a node, into `HF_DATASETS_CACHE` or else into a folder of
    that cache. Nothing is asked of the hub, neither at the start nor later.

    Args:
        source: The folder that `save_to_disk` wrote, or files, a folder or a pattern of `.parquet`, `.json`, `.jsonl`,
            as local paths or any fsspec URLs.
        split: Which split of a DatasetDict.
        columns: Those to read, in this order. Default: all.
        target: The column of whole numbers that is the attribute `targets`, by which classes are balanced.
        length: The column that is the attribute `lengths`, by which samples are grouped: the lengths of its texts or
            lists, or its whole numbers.
        as_tuple: Whether samples and batches are tuples of the columns instead of mappings.
        transform: Called with each sample, with seeded generators.

    Raises:
        UserError: There is no such dataset, split or column, or it is damaged.
        StorageAway: The storage does not answer.
    """

    def __init__(
        self,
        source: str | list[str],
        split: str | None = None,
        columns: list[str] | None = None,
        target: str | None = None,
        length: str | None = None,
        as_tuple: bool = False,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(transform, as_tuple)
        load_library("datasets", "datasets", "pipeline.formats.HuggingFace")
        self.source, self.split = source, split
        self.columns, self.target, self.length = columns, target, length
        self.listed = FileList(source, (".arrow", *_BUILDERS), _WHAT, fit=False)
        self._saved = self._find_saved(source) if isinstance(source, str) else None
        if self._saved is not None:
            self.files = FileList(self._saved, (".arrow",), _WHAT, fit=False)
        else:
            self.files = self.listed
            if split is not None:
                raise UserError(f"HuggingFace(split={split!r}): files have no splits: name those of one as source")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_dataset"}

    def _find_saved(self, source: str) -> list[str] | None:
        """Return the files of the dataset in the order of its rows; None where there is none by `save_to_disk`."""
        names = {each.name for each in self.listed.files}
        if not any(name.endswith(".arrow") for name in names):
            return None
        folder = source.rstrip("/")
        splits = self._read(f"{folder}/dataset_dict.json", "splits")
        if splits is not None:
            if self.split not in splits:
                hint = did_you_mean(self.split, splits) if self.split is not None else ""
                raise UserError(f"HuggingFace(split={self.split!r}) must be one of {', '.join(splits)}{hint}")
            folder = f"{folder}/{self.split}"
        elif self.split is not None:
            raise UserError(f"HuggingFace(split={self.split!r}): {source} is one dataset, without splits: leave it out")
        parts = self._read(f"{folder}/state.json", "_data_files")
        if parts is None:
            raise UserError(
                f"{_WHAT}={source!r} has no state.json beside its .arrow files: name the folder that save_to_disk "
                "wrote; pipeline.formats.Table reads plain Arrow files"
            )
        files = [each.get("filename") if isinstance(each, dict) else None for each in parts]
        if not files or not all(isinstance(each, str) and "/" not in each for each in files):
            raise UserError(f"{_WHAT}: {folder}/state.json names no data files: it is damaged. Save the dataset again")
        return [f"{folder}/{each}" for each in files]

    def _read(self, url: str, key: str) -> list[Any] | None:
        """Return a list that stands in a small JSON file, None where there is no such file."""
        fs, _ = self.listed.filesystem(0)
        try:
            with self.listed.reported(url):
                data = fs.cat_file(url)
        except UserError as error:
            if any(isinstance(each, FileNotFoundError) for each in chain(error)):
                return None
            raise
        try:
            found = json.loads(data)[key]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{_WHAT}: {url} is damaged: {in_one_line(error)}. Save the dataset again") from error
        return found if isinstance(found, list) else None

    def prepare_data(self) -> None:
        """Fetch and convert what is needed, once a node."""
        self.files.prepare()
        len(self)

    @cached_property
    def _dataset(self) -> Any:
        """The dataset, opened in this process."""
        library = load_library("datasets", "datasets", "pipeline.formats.HuggingFace")
        dataset = self._built(library) if self._saved is None else self._mapped(library)
        columns = choose(self.columns, dataset.column_names, f"{_WHAT}={self.source!r}")
        for asked, what in ((self.target, "target"), (self.length, "length")):
            choose(None if asked is None else [asked], dataset.column_names, f"HuggingFace({what})")
        if not len(dataset):
            raise UserError(f"{_WHAT}={self.source!r} has no rows")
        return dataset.with_format("torch", columns=columns)

    def _mapped(self, library: Any) -> Any:
        pa = load_library("pyarrow", "datasets", "pipeline.formats.HuggingFace")
        tables = [ArrowFile(self.files, at).table() for at in range(len(self.files))]
        try:
            # Tables over the mapped files: nothing is copied.
            return library.Dataset(library.table.InMemoryTable(pa.concat_tables(tables)))
        except (pa.ArrowException, ValueError) as error:
            raise UserError(f"{_WHAT}: {self.files.url(0)} is no dataset: {in_one_line(error)}") from error

    def _built(self, library: Any) -> Any:
        kinds = {_BUILDERS.get(f".{each.name.rpartition('.')[2].lower()}") for each in self.files.files}
        kind = kinds.pop()
        if kinds or kind is None:
            names = ", ".join(each.name for each in self.files.files[:3])
            raise UserError(
                f"{_WHAT}={self.source!r} must be files of one kind, {', '.join(_BUILDERS)}, and has {names}"
            )
        if kind == "parquet":
            for at in range(len(self.files)):
                ArrowFile(self.files, at)  # which of them is damaged the library does not say
        paths = [str(source.path) for at in range(len(self.files)) if (source := self.files.map(at).source) is not None]
        own = None if {"HF_HOME", "HF_DATASETS_CACHE"} & set(os.environ) else str(cache_folder() / "huggingface")
        with self._judged(), _silent(library):
            return library.load_dataset(kind, data_files=paths, split="train", cache_dir=own)

    @contextmanager
    def _judged(self) -> Iterator[None]:
        try:
            yield
        except (UserError, StorageAway):
            raise
        except Exception as error:
            pa = load_library("pyarrow", "datasets", "pipeline.formats.HuggingFace")
            causes = chain(error)
            damaged = next(
                (each for each in causes if isinstance(each, (pa.ArrowException, ValueError, OSError))), None
            )
            if damaged is None and type(error).__module__.partition(".")[0] != "datasets":
                raise
            names = ", ".join(map(self.files.url, range(min(3, len(self.files)))))
            raise UserError(
                f"{_WHAT}: {names}: datasets cannot read it: {in_one_line(damaged or error)}. Write the file again"
            ) from error

    def __len__(self) -> int:
        return len(self._dataset)

    def fetch(self, indices: Rows) -> dict[str, Any]:
        """Return the rows of a batch."""
        with self._judged():
            found = self._dataset[indices.tolist()]
        return (
            {name: found[name] for name in self._dataset.format["columns"]}
            if self.columns is None
            else {name: found[name] for name in dict.fromkeys(self.columns)}
        )

    @cached_property
    def targets(self) -> Sequence[int]:
        """The values of the column `target`."""
        if self.target is None:
            raise AttributeError("HuggingFace(target=...) names no column of classes")
        name = f"HuggingFace(target={self.target!r})"
        parts = [arrow_values.numbers(each, name) for each in self._dataset.data.column(self.target).chunks]
        return [value for each in parts for value in as_classes([] if each is None else each, name)]

    @cached_property
    def lengths(self) -> Sequence[int]:
        """The lengths of the column `length`."""
        if self.length is None:
            raise AttributeError("HuggingFace(length=...) names no column")
        name = f"HuggingFace(length={self.length!r})"
        chunks = self._dataset.data.column(self.length).chunks
        return [int(value) for each in chunks for value in arrow_values.lengths(each, name)]

    def fingerprint(self) -> str:
        """A digest of the files, and of what is read of them."""
        return self.files.fingerprint("HuggingFace", self.columns, self.as_tuple)


@contextmanager
def _silent(library: Any) -> Iterator[None]:
    """Have the library show no bars: each process of a node would show its own."""
    shown = not library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            library.enable_progress_bars()
