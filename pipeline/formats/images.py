"""Pictures in a folder or bucket, one folder for each class or a file of labels, by Pillow.

data.train: {class_path: pipeline.formats.Images, init_args: {source: s3://bucket/train, size: [224, 224]}}
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import UserError, did_you_mean
from pipeline.formats.batched import Batched, Rows
from pipeline.formats.files import FileList
from pipeline.formats.pictures import ENDINGS, Mode, PictureDecoder, stack
from pipeline.run.retry import patiently
from pipeline.run.storage import read

_FEW = 3


class Images(Batched):
    """Pictures and their classes: (picture, class), (C, H, W) float32 in 0..1 and an int64.

    The folder is listed once, at the start, in the order of its names; a batch of remote pictures is fetched at once.
    They do not go through the cache, for there are many and small ones: tar shards are faster for those.

    Args:
        source: The folder, as a local path or any fsspec URL. Without `labels` each picture's class is the folder right
            below it, and a class's number its place among the sorted names.
        labels: A CSV or JSON file with the class of each picture that belongs to the set, by its path below `source`:
            two columns with a header (`file,label`), or `{"a/1.png": "cat"}`.
        classes: The names of the classes in the order of their numbers. Default: those that are there, sorted; whole
            numbers by size. Name them where a set may lack one that others have.
        mode: `RGB`, or `L` for gray.
        size: Height and width in pixels to which pictures are scaled. Default: as they are.
        transform: Called with each picture, with seeded generators: for augmentation.

    Attributes:
        classes: Their names.
        targets: The class of each picture.

    Raises:
        UserError: There are no pictures, a class has none, or a label fits no picture.
        StorageAway: The storage does not answer.
    """

    def __init__(
        self,
        source: str,
        labels: str | None = None,
        classes: list[str] | None = None,
        mode: Mode = "RGB",
        size: tuple[int, int] | None = None,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(transform)
        self.decoder = PictureDecoder(mode, size, "Images")
        self.files = FileList(source, ENDINGS if labels is None else ("",), "Images(source)", whole=False)
        where = f"Images(source={source!r})"
        if labels is None:
            named = _by_folder(self.files, where)
            if classes is None:
                _refuse_empty(self.files, set(named.values()), where)
        else:
            named = _by_label(self.files, _read_labels(labels), f"Images(labels={labels!r})")
        self.classes = _classes(list(named.values()), classes, where)
        numbers = {name: number for number, name in enumerate(self.classes)}
        self._at = np.array(list(named), np.int64)
        self._targets = np.array([numbers[name] for name in named.values()], np.int64)

    @property
    def targets(self) -> Sequence[int]:
        """The class of each picture."""
        found: list[int] = self._targets.tolist()
        return found

    def __len__(self) -> int:
        return len(self._at)

    def fetch(self, indices: Rows) -> tuple[Any, Tensor]:
        """Return pictures, (n, C, H, W) or, where they are transformed first, a list of them, and (n,) classes."""
        at = self._at[indices].tolist()
        pictures = [
            self.decoder.tensor(data, self.files.url(file))
            for file, data in zip(at, self.files.contents(at), strict=True)
        ]
        targets = torch.from_numpy(self._targets[indices])
        if self.transform is not None or len(pictures) < 2:
            return (torch.stack(pictures) if len(pictures) == 1 else pictures), targets
        how = (
            "Give size: [height, width], a transform that makes one, or, for a collate_fn that takes several, "
            "transform: torch.nn.Identity"
        )
        return stack(pictures, [self.files.url(file) for file in at], how), targets

    def transformed(self, sample: Any) -> Any:
        """Return a sample with its picture as the transform makes it."""
        return super().transformed(sample[0]), sample[1]

    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        """The picture for the report: (H, W) or (H, W, 3)."""
        file = int(self._at[index])
        return self.decoder.pixels(self.files.contents([file])[0], self.files.url(file))

    def fingerprint(self) -> str:
        """A digest of the files, their classes, and of how they are decoded."""
        how = (self.decoder.mode, self.decoder.size, self.classes, self._at.tobytes(), self._targets.tobytes())
        return self.files.fingerprint("Images", *how)


def _by_folder(files: FileList, where: str) -> dict[int, str]:
    """Return the class of each picture by the folder that it is in."""
    loose = [each.name for each in files.files if "/" not in each.name]
    if loose:
        raise UserError(
            f"{where}: {len(loose)} pictures lie in no folder of a class, such as {loose[0]}. Move each into one, name "
            "its class by labels=<a CSV or JSON file>, or name the folder above as source"
        )
    return {at: each.name.partition("/")[0] for at, each in enumerate(files.files)}


def _refuse_empty(files: FileList, found: set[str], where: str) -> None:
    """Refuse folders of classes that hold no picture: the numbers of the classes behind them would be others."""
    fs, _ = files.filesystem(0)
    with files.reported(files.given[0]):
        listed = patiently(files.given[0], lambda: fs.ls(files.given[0], detail=True))
    names = [str(each["name"]).rstrip("/").rpartition("/")[2] for each in listed if each["type"] == "directory"]
    empty = sorted(name for name in names if name not in found and not name.startswith((".", "_")))
    if empty:
        raise UserError(
            f"{where}: {len(empty)} classes have no pictures: {', '.join(empty[:_FEW])}. Remove the folders, or "
            "name all classes by classes: [...], these too"
        )


def _by_label(files: FileList, labels: Mapping[str, str], where: str) -> dict[int, str]:
    """Return the class of each picture that has a label."""
    known = {each.name: at for at, each in enumerate(files.files)}
    missing = [name for name in labels if name not in known]
    if missing:
        shown = ", ".join(map(repr, missing[:_FEW]))
        raise UserError(
            f"{where}: {len(missing)} of {len(labels)} files are not in {files.given[0]}: {shown}"
            f"{did_you_mean(missing[0], list(known)[:10_000])}"
        )
    return {known[name]: label for name, label in sorted(labels.items())}


def _read_labels(url: str) -> dict[str, str]:
    files = FileList(url, ("",), "Images(labels)", whole=False)
    fs, path = files.filesystem(0)
    with files.reported(url):
        data = read(fs, path)
    where = f"Images(labels={url!r})"
    try:
        text = (data or b"").decode("utf-8-sig")
        if url.lower().endswith(".json"):
            found = json.loads(text)
            if not isinstance(found, dict) or any(isinstance(each, (dict, list)) for each in found.values()):
                raise UserError(f"{where} must be a JSON object, from each file's path to its class")
            return {str(name): str(label) for name, label in found.items()}
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise UserError(f"{where} is no {'JSON' if url.lower().endswith('.json') else 'CSV'} file: {error}") from error
    short = next((number for number, row in enumerate(rows, 1) if len(row) < 2), None)
    if short is not None or len(rows) < 2:
        place = f"row {short} has one" if short else f"it has {len(rows)} rows"
        raise UserError(f"{where} must have a header, and two columns, a file's path and its class: {place}")
    names = [row[0] for row in rows[1:]]
    if (
        double := next((name for name in names if names.count(name) > 1), None)
        if len(set(names)) < len(names)
        else None
    ):
        raise UserError(f"{where} names {double!r} twice")
    return {row[0]: row[1] for row in rows[1:]}


def _classes(found: list[str], asked: list[str] | None, where: str) -> list[str]:
    names = sorted(set(found), key=lambda each: (0, int(each), "") if each.isdecimal() else (1, 0, each))
    if asked is None:
        return names
    unknown = [each for each in names if each not in asked]
    empty = [each for each in asked if each not in names]
    problems = [
        f"{where} has pictures of {each!r}, which is not in classes{did_you_mean(each, asked)}" for each in unknown
    ]
    if empty and len(empty) == len(asked):
        problems.append(f"{where} has no picture of any of classes={asked}; it has {', '.join(names)}")
    if problems:
        raise UserError(*problems)
    return list(asked)
