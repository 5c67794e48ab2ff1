"""A dataset's pictures as PNG files: what its samples look like, for reports, contact sheets and error messages.

A dataset offers pictures by a method `picture(index)`. It returns what is at hand: an array or a tensor of (H, W), of
(H, W, 1), (H, W, 3) or (H, W, 4), or of (1, H, W) or (3, H, W); whole numbers are 0..255, floating-point numbers
0..1; or an image of PIL's. Whoever shows one goes this way: `pixels_of(dataset, index)`, then `png(pixels)`; several
side by side are one by `contact_sheet`. Neither PIL nor matplotlib is needed.
"""

import math
import struct
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import ConcatDataset, Subset

Pixels = npt.NDArray[np.uint8]
"""(H, W), grey, or (H, W, 3), red, green and blue: uint8."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = (1, 3, 4)
_GAP = 4
"""Pixels between the pictures of a contact sheet."""
_MARGIN = 255
"""What is between them: white."""


def has_pictures(dataset: Any) -> bool:
    """Return whether a dataset offers pictures of its samples: itself, or behind torch's Subset and ConcatDataset."""
    if callable(getattr(dataset, "picture", None)):
        return True
    if isinstance(dataset, Subset):
        return has_pictures(dataset.dataset)
    return isinstance(dataset, ConcatDataset) and all(map(has_pictures, dataset.datasets))


def pixels_of(dataset: Any, index: int) -> Pixels:
    """Return what a dataset's `picture(index)` shows.

    Args:
        dataset: One that `has_pictures`.
        index: >= 0.

    Raises:
        ValueError: It is no picture.
    """
    while not callable(getattr(dataset, "picture", None)):
        if isinstance(dataset, Subset):
            dataset, index = dataset.dataset, int(dataset.indices[index])
        else:
            part = bisect_right(dataset.cumulative_sizes, index)
            index -= dataset.cumulative_sizes[part - 1] if part else 0
            dataset = dataset.datasets[part]
    try:
        return as_pixels(dataset.picture(index))
    except ValueError as error:
        raise ValueError(f"{type(dataset).__name__}.picture({index}): {error}") from error


def as_pixels(picture: Any) -> Pixels:
    """Return a picture as grey or coloured pixels.

    Args:
        picture: Of one of the kinds that the module's text names.

    Raises:
        ValueError: It is none of them.
    """
    if callable(getattr(picture, "convert", None)) and hasattr(picture, "mode"):  # PIL's; it need not be imported
        picture = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    if isinstance(picture, torch.Tensor):
        picture = picture.detach().cpu()
        picture = picture.float().numpy() if picture.is_floating_point() else picture.numpy()
    array = np.asarray(picture)
    if array.ndim == 3 and array.shape[-1] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    drawable = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in _CHANNELS)
    if not drawable or not array.size or array.dtype.kind not in "biuf":
        raise ValueError(
            f"a picture must be (H, W), (H, W, 3) or (3, H, W) numbers or an image of PIL's, not {array.dtype} "
            f"{array.shape}"
        )
    array = array[..., :3] if array.ndim == 3 else array
    if array.dtype.kind == "f":
        array = np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=1.0, neginf=0.0) * 255
        array = np.rint(np.clip(array, 0, 255))
    elif array.dtype.kind == "b":
        array = array * np.uint8(255)
    return np.ascontiguousarray(np.clip(array, 0, 255).astype(np.uint8))


def png(pixels: Pixels) -> bytes:
    """Return pixels as the bytes of a PNG file.

    Args:
        pixels: As `as_pixels` returns them.
    """
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    # Each row begins with its filter: 1, each byte is the difference to that of the pixel to the left.
    across = 3 if pixels.ndim == 3 else 1
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 1
    filtered[:, 1 : 1 + across] = rows[:, :across]
    filtered[:, 1 + across :] = rows[:, across:] - rows[:, :-across]
    colour = 2 if pixels.ndim == 3 else 0
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def contact_sheet(pictures: Sequence[Pixels], columns: int = 8, side: int = 256, enlarged: int = 8) -> Pixels:
    """Return pictures side by side, row by row, as one.

    Args:
        pictures: At least one; they may have different sizes.
        columns: The most in a row.
        side: The longest side of each in pixels: larger ones are thinned out.
        enlarged: How often the pixels of smaller ones are repeated, at most.
    """
    shown = [_scaled(each, side, enlarged) for each in pictures]
    if any(each.ndim == 3 for each in shown):
        shown = [each if each.ndim == 3 else np.repeat(each[..., None], 3, axis=-1) for each in shown]
    columns = min(columns, len(shown))
    height, width = (max(each.shape[axis] for each in shown) for axis in (0, 1))
    rows = -(-len(shown) // columns)
    size = (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP)
    sheet = np.full((*size, *shown[0].shape[2:]), _MARGIN, np.uint8)
    for at, each in enumerate(shown):
        row, column = divmod(at, columns)
        top, left = _GAP + row * (height + _GAP), _GAP + column * (width + _GAP)
        sheet[top : top + each.shape[0], left : left + each.shape[1]] = each
    return sheet


def _scaled(pixels: Pixels, side: int, enlarged: int) -> Pixels:
    longest = max(pixels.shape[:2])
    if longest > side:
        step = math.ceil(longest / side)
        return pixels[::step, ::step]
    times = min(side // longest, enlarged)
    return pixels.repeat(times, axis=0).repeat(times, axis=1)
