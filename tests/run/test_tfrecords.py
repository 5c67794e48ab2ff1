"""Records are found, and each checksum is the one that TensorBoard's own writer stores."""

import numpy as np
import pytest
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from pipeline.run.tfrecords import frames, intact, masked_crcs
from tests.support.event_logs import event_file

DATA = event_file([("loss", step, 1 / (step + 1)) for step in range(50)])


def test_checksums_are_those_of_tensorboard_for_pieces_of_any_length() -> None:
    random = np.random.default_rng(0)
    raw = random.integers(0, 256, 4096, dtype=np.uint8)
    lengths = np.array([0, 1, 2, 3, 7, 64, 255, 1000, 0, 64])
    starts = random.integers(0, 3000, len(lengths))
    expected = [masked_crc32c(raw[at : at + n].tobytes()) for at, n in zip(starts, lengths, strict=True)]
    assert masked_crcs(raw, starts, lengths).tolist() == expected


def test_more_records_than_are_summed_at_once_have_the_same_checksums() -> None:
    raw = np.arange(256, dtype=np.uint8)
    starts = np.arange(40_000) % 200
    lengths = np.arange(40_000) % 17
    found = masked_crcs(raw, starts, lengths)
    for at in (0, 16_383, 16_384, 39_999):
        piece = raw[starts[at] : starts[at] + lengths[at]].tobytes()
        assert found[at] == masked_crc32c(piece)


def test_whole_records_are_found_and_intact() -> None:
    found = frames(DATA)
    assert len(found.starts) == 51
    assert found.end == len(DATA)
    assert not found.broken
    assert intact(DATA, found.starts, found.lengths).all()


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_torn_tail_leaves_the_records_before_it(cut: int) -> None:
    found = frames(DATA[:-cut])
    assert not found.broken
    assert found.end <= len(DATA) - cut
    assert len(found.starts) in (49, 50)


def test_a_damaged_byte_breaks_one_record_and_a_damaged_length_all_that_follow() -> None:
    whole = frames(DATA)
    body, length = int(whole.starts[20]) + 3, int(whole.starts[20]) - 12
    damaged = bytearray(DATA)
    damaged[body] ^= 1
    found = frames(bytes(damaged))
    assert np.flatnonzero(~intact(bytes(damaged), found.starts, found.lengths)).tolist() == [20]
    for bit in (0, 60):  # a little wrong, and beyond any file
        damaged = bytearray(DATA)
        damaged[length + bit // 8] ^= 1 << bit % 8
        found = frames(bytes(damaged))
        assert found.broken
        assert len(found.starts) == 20
        assert found.end == length


def test_zeros_of_a_disk_that_lost_power_are_no_records() -> None:
    found = frames(DATA + bytes(4096))
    assert len(found.starts) == 51
    assert found.broken


def test_nothing_holds_no_records() -> None:
    assert frames(b"").end == 0
    assert not frames(b"").broken
