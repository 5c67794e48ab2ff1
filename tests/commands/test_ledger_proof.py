"""A ledger is judged from the order of each epoch alone."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.commands.ledger_proof import judge
from pipeline.data.epoch_record import EpochRecord, Tally
from pipeline.errors import UserError
from tests.support.checkpoints import a_record
from tests.support.commands import without


def epoch(number: int, samples: int = 100, position: int = 100, **more: Any) -> EpochRecord:
    """The record of an epoch that used what it should have."""
    record = EpochRecord(number, 7, samples, position, closed="complete", **more)
    return replace(record, consumed=record.expected())


def judged(*epochs: EpochRecord, end: bool = True, **more: Any) -> Any:
    record = replace(a_record(40), epoch=len(epochs), reason=["end" if end else "steps"])
    return judge([each.as_dict() for each in epochs], record, "runs/x", **more)


def test_epochs_that_used_each_sample_are_proven() -> None:
    proof = judged(epoch(0), epoch(1), epoch(2, position=60), epoch(3, padded=2))
    assert proof.proven
    assert proof.conclusion == "every sample is accounted for"
    assert [row[:4] for row in proof.rows] == [
        ("0", "100", "100", "0"),
        ("1", "100", "100", "0"),
        ("2", "60", "60", "0"),
        ("3", "102", "102", "2"),
    ]
    assert (proof.notes, proof.problems) == ([], [])


def test_one_sample_in_the_place_of_another_is_found_in_each_epoch() -> None:
    other = epoch(1)
    swapped = replace(other, consumed=Tally(100, (other.consumed.hash + 1) % 2**64))
    proof = judged(epoch(0), swapped, epoch(2))
    assert [row[5] for row in proof.rows] == ["ok", "FAILED", "ok"]
    assert "epoch 1 should have used 100 samples" in proof.problems[0]
    assert not proof.proven
    assert proof.conclusion == ""


def test_epochs_of_other_sizes_are_not_taken_for_each_other() -> None:
    assert judged(epoch(0, 100), epoch(1, 101, 101)).proven
    wrong = replace(epoch(1, 101, 101), consumed=epoch(0).consumed)
    assert not judged(epoch(0), wrong).proven


def test_gaps_and_what_is_not_known_are_said() -> None:
    missing = judged(epoch(0), epoch(2), epoch(3))
    assert missing.problems == ["epoch 1 has no record"]
    unproven = judged(replace(epoch(0), consumed=Tally(), unproven=epoch(0).consumed), end=False)
    assert not unproven.proven
    assert not unproven.problems
    assert "is not proven" in unproven.notes[0]
    assert "training has not ended there" in unproven.notes[1]
    assert judged().conclusion == "no epoch has been trained yet"


def test_a_ledger_that_would_take_long_is_left_to_verify() -> None:
    assert judged(*(epoch(number) for number in range(50)), most=100).proven, "the same set is hashed once"
    with pytest.raises(UserError, match="160 samples would take long"):
        judged(epoch(0), epoch(1, position=60), most=159)
    with pytest.raises(UserError, match="verify"):
        judged(replace(epoch(0), samples=2**61, position=2**61), most=1000)


@pytest.mark.parametrize("records", [[{}], [3], [{"epoch": "x"}]])
def test_a_damaged_ledger_is_named(records: list[Any]) -> None:
    with pytest.raises(UserError, match="the ledger of step 40 is damaged"):
        judge(records, a_record(40), "runs/x")


def test_torch_is_not_needed() -> None:
    without(("torch", "lightning"), "import pipeline.commands.ledger_proof")
