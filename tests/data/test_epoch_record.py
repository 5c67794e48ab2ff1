"""What an epoch should have used and what it did use are counts and hashes that add up."""

import json

import numpy as np
import pytest

from pipeline.data.epoch_record import EpochRecord, Tally


def test_tallies_add_up_in_any_order_and_tell_every_exchange() -> None:
    indices = np.arange(1000)
    parts = [Tally.of(indices[start::3]) for start in (2, 0, 1)]
    assert sum(parts, Tally()) == Tally.of(indices)
    for wrong in (indices[1:], np.append(indices, 5), np.where(indices == 3, 4, indices), indices + 1):
        assert Tally.of(wrong) != Tally.of(indices)
    # Two exchanges that keep the sum and the sum of squares: 0+5+7 = 1+3+8, 0+25+49 = 1+9+64.
    assert Tally.of(np.array([0, 5, 7])) != Tally.of(np.array([1, 3, 8]))


def test_an_account_outlasts_being_written_and_read() -> None:
    account = EpochRecord(3, 1, 101, 64, 1, 2, Tally(65, 2**64 - 1), "complete")
    assert EpochRecord.from_dict(json.loads(json.dumps(account.as_dict()))) == account
    for broken in ({}, {**account.as_dict(), "consumed": [1]}, {**account.as_dict(), "epoch": None}, None):
        with pytest.raises(ValueError, match="not the record of an epoch"):
            EpochRecord.from_dict(broken)  # type: ignore[arg-type]


def test_shares_of_what_is_expected_add_up() -> None:
    for account in (
        EpochRecord(1, 2, 30_000, 30_000, 3),
        EpochRecord(1, 2, 30_000, 17_001),
        EpochRecord(0, 0, 5, 5, 11),
    ):
        whole = account.expected()
        assert whole.count == account.position + account.padded
        assert sum((account.expected(rank, 3) for rank in range(3)), Tally()) == whole
