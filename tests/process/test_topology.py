"""Topology belongs to the launcher, and rank 0's answer is everybody's."""

import time
from datetime import timedelta

import pytest

from pipeline.errors import StorageAway, UserError
from pipeline.process.topology import Topology
from tests.support.commands import torchrun
from tests.support.meeting import Meeting
from tests.support.rank_threads import ranks

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")


def environment(*values: object) -> dict[str, str]:
    return dict(zip(NAMES, map(str, values), strict=True))


def test_without_a_launcher_there_is_one_process() -> None:
    assert Topology.from_environment({"PATH": "/bin"}) == Topology(0, 0, 1, 1, 0, 1)


def test_the_launchers_variables_are_read() -> None:
    assert Topology.from_environment(environment(5, 1, 8, 4, 1, 2)) == Topology(5, 1, 8, 4, 1, 2)


def test_all_missing_and_foreign_variables_are_named_at_once() -> None:
    with pytest.raises(UserError) as raised:
        Topology.from_environment({"RANK": "0", "WORLD_SIZE": "two"})
    assert [problem.split(maxsplit=1)[0].split("=")[0] for problem in raised.value.problems] == list(NAMES[1:])


def test_nodes_of_different_size_are_refused() -> None:
    with pytest.raises(UserError, match="WORLD_SIZE=3 is not LOCAL_WORLD_SIZE=2 x GROUP_WORLD_SIZE=2"):
        Topology.from_environment(environment(0, 0, 3, 2, 0, 2))


def test_rank_0_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks(monkeypatch, 3, lambda place: place.agree("x", lambda: {"rank": place.rank})) == [{"rank": 0}] * 3


def test_rank_0s_refusal_is_everybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UserError("one", "two")

    assert ranks(monkeypatch, 2, lambda place: place.agree("x", refuse)) == [("one", "two")] * 2


def test_a_mistake_on_one_rank_ends_all_and_names_it_and_one_on_all_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(place: Topology) -> None:
        if place.rank == 1:
            raise UserError("everywhere", "only here")
        raise UserError("everywhere")

    first, second = ranks(monkeypatch, 2, lambda place: place.together("built", lambda: build(place)))
    assert first == second
    assert isinstance(first, tuple)
    assert first[0] == "everywhere"
    assert first[1].startswith("only here (rank 1 on ")


def test_every_value_is_gathered_by_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks(monkeypatch, 3, lambda place: place.gather("x", place.rank * 10)) == [[0, 10, 20]] * 3


def test_a_mistake_under_torchrun_is_said_once_and_by_rank_0() -> None:
    ended = torchrun(2, "-m", "pipeline", "fit", "--config", "pipeline/configs/digits.yaml", "--trainer.max_epoch=3")
    assert ended.status != 0
    assert ended.text.count("did you mean 'trainer.max_epochs'?") == 1
    assert "exitcode  : 2" in ended.text


def test_an_answer_that_takes_longer_than_a_rank_would_wait_in_silence_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.process.topology._HEARTBEAT", 0.1)
    monkeypatch.setattr("pipeline.process.topology._TIMEOUT", timedelta(seconds=0.6))

    def decide() -> str:
        time.sleep(2.5)
        return "late"

    assert ranks(monkeypatch, 2, lambda place: place.agree("x", decide)) == ["late"] * 2


def test_a_constructor_that_takes_longer_on_one_rank_is_waited_for_by_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node that downloads for 15 minutes must not end the job of those that have the files."""
    monkeypatch.setattr("pipeline.process.topology._HEARTBEAT", 0.1)
    monkeypatch.setattr("pipeline.process.topology._TIMEOUT", timedelta(seconds=0.6))

    def build(place: Topology) -> int:
        time.sleep(2.5 * (place.rank == 2))
        return place.rank

    assert ranks(monkeypatch, 3, lambda place: place.together("built", lambda: build(place))) == [[0, 1, 2]] * 3


def test_a_rank_that_dies_in_its_constructor_is_noticed_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import DistStoreError

    monkeypatch.setattr("pipeline.process.topology._HEARTBEAT", 0.1)
    monkeypatch.setattr("pipeline.process.topology._TIMEOUT", timedelta(seconds=0.6))

    def build(place: Topology) -> str:
        if place.rank == 1:
            return "dead"
        try:
            return str(place.together("built", lambda: 0))
        except DistStoreError as error:
            return str(error)

    first, _, last = ranks(monkeypatch, 3, build)
    assert "rank 1 has not been heard of for 1 s (built)" in str(first)
    assert "rank 0 has not been heard of for 1 s (built)" in str(last)


def test_an_outage_on_one_rank_is_everybodys_and_a_mistake_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(place: Topology, mistake: bool) -> None:
        if place.rank == 1:
            raise StorageAway("s3://b does not answer")
        if place.rank == 2 and mistake:
            raise UserError("no such file")

    def outcome(place: Topology, mistake: bool) -> str:
        try:
            return str(place.together(f"read {mistake}", lambda: read(place, mistake)))
        except (StorageAway, UserError) as error:
            return f"{type(error).__name__}: {error}"

    for each in ranks(monkeypatch, 3, lambda place: outcome(place, False)):
        assert str(each).startswith("StorageAway: s3://b does not answer (rank 1 on ")
    for each in ranks(monkeypatch, 3, lambda place: outcome(place, True)):
        assert str(each).startswith("UserError: no such file (rank 2 on ")


def test_gathering_asks_the_store_about_as_often_as_there_are_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import PrefixStore

    asked: list[int] = []
    real = PrefixStore.multi_get
    monkeypatch.setattr(PrefixStore, "multi_get", lambda store, keys: asked.append(len(keys)) or real(store, keys))
    assert ranks(monkeypatch, 8, lambda place: place.gather("x", place.rank)) == [list(range(8))] * 8
    assert sorted(asked) == [1] * 8 + [7]


def test_what_each_rank_reads_of_all_others_grows_with_their_number_by_some_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    read = {}
    for size in (8, 64):
        meeting = Meeting(size)
        meeting.agree()
        read[size] = meeting.total["bytes read"] / size
    assert read[64] - read[8] < 20 * (64 - 8)


def test_a_rank_0_that_is_not_heard_of_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import DistError

    monkeypatch.setattr("pipeline.process.topology._TIMEOUT", timedelta(seconds=0.5))

    def agree(place: Topology) -> str:
        try:
            return str(place.agree("x", lambda: time.sleep(2)))
        except DistError:
            return "gave up"

    assert ranks(monkeypatch, 2, agree)[1] == "gave up"
