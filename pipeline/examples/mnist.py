"""MNIST from any fsspec URL of a folder with its four IDX files, gzipped or not.

IDX: two zero bytes, a type (8: unsigned byte), the number of dimensions, each dimension as a big-endian uint32, then
the values (Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits").
"""

import gzip
import math
import zlib
from functools import lru_cache

import fsspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "val": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_VAL = 5_000
_GZIP = b"\x1f\x8b"


class MNIST(Dataset[tuple[Tensor, Tensor]]):
    """One split of MNIST: (pixels, label), (28, 28) float32 in 0..1 and an int64 in 0..9.

    The validation set is the last 5,000 images of the training files; training has the 55,000 before them.

    Args:
        root: A folder as a local path or any fsspec URL (s3://, https://, ...) with `train-images-idx3-ubyte`,
            `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, with or without `.gz`.
        split: `train`, `val` or `test`.

    Raises:
        ValueError: Another split is named, or a file is missing, short or not what its name says.
    """

    def __init__(self, root: str, split: str = "train") -> None:
        if split not in _FILES:
            raise ValueError(f"split={split!r}: allowed are {', '.join(map(repr, _FILES))}")
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
        self.images = torch.from_numpy(images[part])
        self.labels = torch.from_numpy(labels[part].astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index].float().div_(255), self.labels[index]


@lru_cache(maxsize=4)
def _idx(root: str, name: str, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes. Cached, since training and validation share theirs."""
    url, data = _fetch(root, name)
    try:
        raw = gzip.decompress(data) if data[:2] == _GZIP else data
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{url}: damaged gzip ({error})") from error
    magic = bytes((0, 0, 8, dimensions))
    if raw[:4] != magic:
        raise ValueError(
            f"{url}: starts with {raw[:4].hex(' ')}, an IDX file of {dimensions} dimensions with {magic.hex(' ')}"
        )
    start = 4 + 4 * dimensions
    if len(raw) < start:
        raise ValueError(f"{url}: {len(raw)} bytes are shorter than its header of {start}")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", dimensions, 4))
    expected = start + math.prod(shape)
    if len(raw) != expected:
        raise ValueError(f"{url}: {len(raw)} bytes, but its header {shape} asks for {expected}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()


def _fetch(root: str, name: str) -> tuple[str, bytes]:
    failures = []
    for url in (f"{root.rstrip('/')}/{name}.gz", f"{root.rstrip('/')}/{name}"):
        try:
            with fsspec.open(url, "rb") as file:
                return url, bytes(file.read())
        except Exception as error:  # noqa: BLE001 - every storage has errors of its own
            failures.append(f"{url}: {type(error).__name__}: {error}")
    raise ValueError(f"{root}: neither {name}.gz nor {name} could be read ({'; '.join(failures)})")
