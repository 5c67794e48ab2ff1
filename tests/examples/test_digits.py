"""The digits that come with the package: all of them, split once and for all."""

import pytest
import torch

from pipeline.examples.digits import Digits, DigitTokens


def test_the_digits_are_all_there_split_once_and_for_all() -> None:
    splits = [Digits(split) for split in ("train", "val", "test")]
    assert [len(split) for split in splits] == [1257, 180, 360]
    pixels = torch.cat([split.pixels for split in splits])
    assert pixels.dtype == torch.float32
    assert (pixels.min(), pixels.max()) == (0, 1)
    assert int((pixels * 16).sum()) == 561718, "the sum over the file as it was published"
    assert [int((torch.cat([split.labels for split in splits]) == digit).sum()) for digit in range(10)] == [
        *(178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
    ]
    assert [int(split[0][1]) for split in splits] == [int(Digits(name)[0][1]) for name in ("train", "val", "test")]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split='dev' must be one of 'train', 'val', 'test'"):
        Digits(split="dev")


def test_the_pixels_take_the_shape_that_a_network_wants() -> None:
    assert Digits("val", shape=[1, 8, 8])[0][0].shape == (1, 8, 8)
    assert Digits("val", shape=[1, 8, 8]).__getitems__([0, 1])[0].shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"shape=\[1, 28, 28\] must have 64 pixels"):
        Digits("val", shape=[1, 28, 28])


def test_tokens_are_the_levels_of_gray_that_were_published() -> None:
    tokens, label = DigitTokens("val")[3]
    pixels, same = Digits("val")[3]
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, (pixels * 16).long())
    assert label == same
