"""Pictures out of bytes, by Pillow: upright, in the wanted mode and size, as tensors."""

import io
import re
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import UserError, in_one_line
from pipeline.formats.batched import load_library

Mode: TypeAlias = Literal["RGB", "L"]
"""Colours, or gray."""
_OBJECT = re.compile(r" <_io\..*?>")
"""What Pillow calls a file without a name."""
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


class PictureDecoder:
    """Makes pictures of files' bytes.

    Args:
        mode: `RGB`, or `L` for gray.
        size: Height and width in pixels to which pictures are scaled; None: as they are.
        needed_by: Who needs Pillow.

    Raises:
        UserError: Pillow is not installed, or a value is out of its range.
    """

    def __init__(self, mode: Mode, size: tuple[int, int] | None, needed_by: str) -> None:
        load_library("PIL.Image", "images", needed_by)
        if mode not in ("RGB", "L"):
            raise UserError(f"{needed_by}(mode={mode!r}) must be 'RGB' or 'L'")
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise UserError(f"{needed_by}(size={list(size)}) must be height and width in pixels, each >= 1")
        self.mode, self.size = mode, size

    def pixels(self, data: bytes, where: str) -> npt.NDArray[np.uint8]:
        """Return a picture, upright as its EXIF data say.

        Args:
            data: The file's bytes.
            where: Its URL, for an error.

        Returns:
            (H, W) for gray, else (H, W, 3).

        Raises:
            UserError: It is damaged, or no picture.
        """
        from PIL import Image, ImageOps  # noqa: PLC0415 - the extra for images

        try:
            with Image.open(io.BytesIO(data)) as opened:
                if self.size is not None:
                    opened.draft(self.mode, self.size[::-1])  # a JPEG of twice the size and more is decoded smaller
                if opened.format != "JPEG" or {"exif", "xmp"} & opened.info.keys():  # a JPEG's stand in its header
                    ImageOps.exif_transpose(opened, in_place=True)
                upright: Any = opened
                wide = upright.mode.startswith("I;16") and self.mode == "L"
                picture = _of_16_bits(upright) if wide else upright.convert(self.mode)
                if self.size is not None and picture.size != self.size[::-1]:
                    picture = picture.resize(self.size[::-1], Image.Resampling.BILINEAR)
                return np.asarray(picture)
        except Exception as error:
            # Pillow has a class of its own for what is no picture, and any of Python's for a damaged one.
            said = _OBJECT.sub("", in_one_line(error))
            raise UserError(
                f"{where} ({len(data)} bytes) is no whole picture: {said}. Replace it, or leave it out"
            ) from error

    def tensor(self, data: bytes, where: str) -> Tensor:
        """Return a picture as numbers in 0..1: (1, H, W) for gray, else (3, H, W), float32. Errors as `pixels`."""
        pixels = self.pixels(data, where)
        planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return torch.from_numpy(planes.astype(np.float32)).div_(255)


def _of_16_bits(picture: Any) -> Any:
    from PIL import Image  # noqa: PLC0415

    return Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))


def stack(pictures: list[Tensor], names: list[str], how: str) -> Tensor:
    """Return pictures of one size as a batch.

    Args:
        pictures: (C, H, W) each.
        names: What each is called.
        how: What the user can do about several sizes.

    Raises:
        UserError: Their sizes differ.
    """
    other = next((at for at, each in enumerate(pictures) if each.shape != pictures[0].shape), None)
    if other is not None:
        sizes = [" x ".join(map(str, pictures[at].shape[1:])) for at in (0, other)]
        raise UserError(
            f"{names[0]} has {sizes[0]} pixels, and {names[other]} {sizes[1]}: a batch needs one size. {how}"
        )
    return torch.stack(pictures)
