"""A dataset's pictures become PNG files that any reader shows as they are."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from pipeline.data.pictures import as_pixels, contact_sheet, has_pictures, pixels_of, png
from tests.support.models import Rows

Image = pytest.importorskip("PIL.Image")
GREY = np.arange(14, dtype=np.uint8).reshape(2, 7) * 18
COLOURS = np.arange(30, dtype=np.uint8).reshape(2, 5, 3) * 8


def read(data: bytes) -> Any:
    """Pixels of a PNG file, as PIL reads them."""
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("picture", "shown"),
    [
        (GREY, GREY),
        (COLOURS, COLOURS),
        (GREY[..., None], GREY),
        (np.concatenate([COLOURS, COLOURS[..., :1]], axis=-1), COLOURS),
        (COLOURS.astype(np.int64), COLOURS),
        (GREY > 100, (GREY > 100) * np.uint8(255)),
        (torch.from_numpy(GREY).float() / 255, GREY),
        (torch.from_numpy(COLOURS).float().div(255).movedim(-1, 0), COLOURS),
        (torch.from_numpy(COLOURS).movedim(-1, 0), COLOURS),
        (torch.from_numpy(GREY)[None].double() / 255, GREY),
        (Image.fromarray(COLOURS), COLOURS),
        (Image.fromarray(GREY), GREY),
    ],
)
def test_every_kind_of_picture_comes_back_from_its_file(picture: Any, shown: Any) -> None:
    pixels = as_pixels(picture)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, shown)
    np.testing.assert_array_equal(read(png(pixels)), shown)


def test_numbers_that_are_none_and_numbers_out_of_range_do_not_wrap_around() -> None:
    values = torch.tensor([[float("nan"), float("inf"), -float("inf"), -0.5, 1.5, 0.5]])
    assert as_pixels(values).tolist() == [[0, 255, 0, 0, 255, 128]]
    assert as_pixels(np.array([[-5, 300]])).tolist() == [[0, 255]]


@pytest.mark.parametrize("picture", [np.zeros(4), np.zeros((2, 2, 7)), np.zeros((0, 3)), "text", None, object()])
def test_what_is_no_picture_is_named_with_its_dataset_and_index(picture: Any) -> None:
    class Odd:
        def picture(self, index: int) -> Any:
            return picture

    assert has_pictures(Odd())
    with pytest.raises(ValueError, match=r"Odd\.picture\(3\): a picture must be \(H, W\)"):
        pixels_of(Odd(), 3)


class Shades(Dataset[Any]):
    """As many grey pictures as it is long, of a shade each."""

    def __init__(self, *shades: int) -> None:
        self.shades = shades

    def __len__(self) -> int:
        return len(self.shades)

    def picture(self, index: int) -> Any:
        return np.full((2, 7), self.shades[index], np.uint8)


def test_pictures_are_found_behind_torchs_parts_and_sums_of_datasets() -> None:
    both: Any = ConcatDataset([Shades(1, 2), Subset(ConcatDataset([Shades(3), Shades(4, 5, 6)]), [3, 0])])
    assert has_pictures(both)
    assert [int(pixels_of(both, index)[0, 0]) for index in range(4)] == [1, 2, 6, 3]


def test_a_dataset_without_pictures_is_told_from_one_with() -> None:
    assert not has_pictures([1, 2])
    assert not has_pictures(Subset(Rows(3), [0]))
    assert not has_pictures(ConcatDataset([Shades(1), Rows(3)]))


def test_a_contact_sheet_holds_every_picture_in_reading_order() -> None:
    sheet = contact_sheet([np.full((2, 2), value, np.uint8) for value in (10, 20, 30)], columns=2, side=2)
    assert sheet.shape == (4 + 2 * (2 + 4), 4 + 2 * (2 + 4))
    assert (sheet[4, 4], sheet[4, 10], sheet[10, 4], sheet[10, 10]) == (10, 20, 30, 255)


def test_a_contact_sheet_takes_grey_and_coloured_pictures_of_any_size() -> None:
    sheet = contact_sheet([np.zeros((1000, 500), np.uint8), np.zeros((3, 3, 3), np.uint8)], side=100)
    assert sheet.shape[-1] == 3
    assert max(sheet.shape) < 250
    np.testing.assert_array_equal(read(png(sheet)), sheet)
