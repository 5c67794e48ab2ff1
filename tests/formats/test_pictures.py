"""Pictures are upright, of one mode and size, and a damaged one is named."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import UserError
from pipeline.formats.pictures import PictureDecoder, stack
from tests.support.formats import png

COLOURS = np.random.default_rng(0).integers(0, 255, (6, 4, 3), dtype=np.uint8)


def test_colours_and_gray_are_tensors_in_0_to_1() -> None:
    found = PictureDecoder("RGB", None, "x").tensor(png(COLOURS), "x.png")
    assert torch.equal((found * 255).round().byte(), torch.from_numpy(COLOURS).permute(2, 0, 1))
    gray = PictureDecoder("L", (3, 8), "x").tensor(png(COLOURS), "x.png")
    assert (gray.shape, gray.dtype) == ((1, 3, 8), torch.float32)


@pytest.mark.parametrize(("mode", "colour"), [("P", 3), ("RGBA", 3), ("1", 3), ("CMYK", 3), ("L", 3)])
def test_every_mode_of_a_file_becomes_the_one_that_is_asked_for(mode: str, colour: int) -> None:
    out = io.BytesIO()
    Image.fromarray(COLOURS).convert(mode).save(out, "TIFF" if mode == "CMYK" else "PNG")
    assert PictureDecoder("RGB", None, "x").pixels(out.getvalue(), "x").shape == (6, 4, colour)


def test_gray_of_16_bits_keeps_its_upper_ones() -> None:
    data = png(np.array([[0, 256, 65535]], np.uint16))
    assert PictureDecoder("L", None, "x").pixels(data, "x").tolist() == [[0, 1, 255]]


def test_a_picture_stands_upright_as_its_camera_held_it() -> None:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS).save(out, "JPEG", exif=exif, quality=100)
    assert PictureDecoder("RGB", None, "x").pixels(out.getvalue(), "x").shape == (4, 6, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_a_picture_that_is_cut_off_is_named_with_its_bytes(form: str, share: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = png(pixels, form)
    cut = data[: int(len(data) * share)]
    with pytest.raises(UserError, match=rf"^a\.jpg \({len(cut)} bytes\) is no whole picture: ") as raised:
        PictureDecoder("RGB", None, "x").pixels(cut, "a.jpg")
    assert "object at" not in str(raised.value)


def test_values_out_of_range_and_several_sizes_are_refused() -> None:
    for mode, size in (("CMYK", None), ("L", (0, 3)), ("L", (3,))):
        with pytest.raises(UserError, match=r"must be"):
            PictureDecoder(mode, size, "x")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"a has 2 x 3 pixels, and c 4 x 3: a batch needs one size. Try"):
        stack([torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 4, 3)], ["a", "b", "c"], "Try")
