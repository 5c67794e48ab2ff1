"""MNIST from any fsspec URL of a folder with its four IDX files, gzipped or not.

IDX: two zero bytes, a type (8: unsigned byte), the number of dimensions, each dimension as a big-endian uint32, then
the values (Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits").
"""

import hashlib
import math
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.cache import Mapped, mapped

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "val": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_VAL = 5_000


class MNIST(Dataset[tuple[Tensor, Tensor]]):
    """One split of MNIST: (pixels, label), (28, 28) float32 in 0..1 and an int64 in 0..9.

    The validation set is the last 5,000 images of the training files; training has the 55,000 before them. The images
    stay in their memory-mapped file: where it is, and what becomes of a remote or gzipped one, is told in
    `pipeline.cache`.

    Args:
        root: A folder as a local path or any fsspec URL (s3://, https://, ...) with `train-images-idx3-ubyte`,
            `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, with or without `.gz`.
        split: `train`, `val` or `test`.

    Raises:
        ValueError: Another split is named, or a file is missing, short or not what its name says.
    """

    deterministic = True

    def __init__(self, root: str, split: str = "train") -> None:
        if split not in _FILES:
            raise ValueError(f"split={split!r} must be one of {', '.join(map(repr, _FILES))}")
        images_name, labels_name = _FILES[split]
        images, labels = _idx(root, images_name, dimensions=3), _idx(root, labels_name, dimensions=1)
        if images.shape[1:] != (28, 28):
            raise ValueError(f"{root}/{images_name}: images of {images.shape[1:]}, expected (28, 28)")
        if len(images) != len(labels):
            raise ValueError(
                f"{root}: {len(images)} images in {images_name}, but {len(labels)} labels in {labels_name}"
            )
        if split != "test" and len(images) <= _VAL:
            raise ValueError(
                f"{root}/{images_name}: {len(images)} images; {_VAL} are validation, none is left to train"
            )
        part = {"train": slice(0, len(images) - _VAL), "val": slice(len(images) - _VAL, None), "test": slice(None)}[
            split
        ]
        self.images = images[part]
        self.labels = torch.from_numpy(labels[part].astype(np.int64))
        self.split = split
        self._files = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        # A tensor needs memory that can be written: the pixels are copied first.
        return torch.from_numpy(self.images[index].astype(np.float32)).div_(255), self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once: (n, 28, 28) pixels and (n,) labels."""
        rows = np.asarray(indices, np.int64)
        return torch.from_numpy(self.images[rows]).float().div_(255), self.labels[torch.from_numpy(rows)]

    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        """The image as it is, (28, 28), for the report."""
        return np.asarray(self.images[index])

    def fingerprint(self) -> str:
        """A digest of the two files, uncompressed, and the split."""
        digests = [file.source.sha256 for file in self._files if file.source is not None]
        return f"sha256:{hashlib.sha256(' '.join([*digests, self.split]).encode()).hexdigest()}"


def _idx(root: str, name: str, dimensions: int) -> Mapped:
    """One IDX file of unsigned bytes."""
    url, raw = _fetch(root, name)
    magic = bytes((0, 0, 8, dimensions))
    if bytes(raw[:4]) != magic:
        raise ValueError(
            f"{url}: starts with {bytes(raw[:4]).hex(' ')}, an IDX file of {dimensions} dimensions with "
            f"{magic.hex(' ')}"
        )
    start = 4 + 4 * dimensions
    if len(raw) < start:
        raise ValueError(f"{url}: {len(raw)} bytes are shorter than its header of {start}")
    shape = tuple(int(size) for size in np.frombuffer(raw.data, ">u4", dimensions, 4))
    expected = start + math.prod(shape)
    if len(raw) != expected:
        raise ValueError(f"{url}: {len(raw)} bytes, but its header {shape} asks for {expected}")
    return cast("Mapped", raw[start:].reshape(shape))


def _fetch(root: str, name: str) -> tuple[str, Mapped]:
    failures = []
    for url in (f"{root.rstrip('/')}/{name}.gz", f"{root.rstrip('/')}/{name}"):
        try:
            return url, mapped(url, decompress=True)
        except OSError as error:
            failures.append(f"{url}: {type(error).__name__}: {error}")
    raise ValueError(f"{root}: neither {name}.gz nor {name} could be read ({'; '.join(failures)})")
