"""A library that lost what this project builds on says so in one sentence, at once."""

from importlib.metadata import version
from typing import Any

import pytest
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from pipeline.errors import UserError
from pipeline.training import compat
from pipeline.training.compat import Member


def test_all_that_is_needed_is_there() -> None:
    assert list(compat.missing()) == []


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (Member(_TrainingEpochLoop, "_gone", (), "stops"), "._TrainingEpochLoop._gone is missing; it stops"),
        (
            Member(_TrainingEpochLoop, "advance", ("fetcher",), "trains"),
            "._TrainingEpochLoop.advance takes (data_fetcher) instead of (fetcher); it trains",
        ),
        (Member(compat.call, "_gone", None, "loads"), "lightning.pytorch.trainer.call._gone is missing; it loads"),
    ],
)
def test_a_member_that_is_missing_is_named_with_version_and_reason(member: Member, words: str) -> None:
    (found,) = compat.missing((member,))
    assert found.startswith(f"lightning {version('lightning')}: ")
    assert words in found


def test_the_check_at_import_ends_with_one_sentence_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_TrainingEpochLoop, "_broadcast_sigterm_tensor")

    def check() -> Any:
        members = [each for each in compat.MEMBERS if each.name == "_broadcast_sigterm_tensor"]
        real = compat.missing
        monkeypatch.setattr(compat, "missing", lambda _: real(tuple(members)))
        compat.check()

    with pytest.raises(UserError, match="_broadcast_sigterm_tensor is missing; it is turned off"):
        check()


def test_each_member_is_named_once() -> None:
    names = [(id(member.owner), member.name) for member in compat.MEMBERS]
    assert len(names) == len(set(names))
