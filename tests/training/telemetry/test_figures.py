"""What all ranks say together of one window."""

import pytest

from pipeline.training.telemetry.figures import RankFigures, StragglerWatch, summed_up


def rank(**more: float) -> RankFigures:
    known = {
        "seconds": 10.0,
        "steps": 100,
        "samples": 800,
        "data": 1.0,
        "forward_backward": 6.0,
        "optimizer": 2.0,
        "p50": 0.09,
        "p95": 0.1,
        "longest": 0.2,
        "saves": 0.5,
        "validation": 0.0,
        "all_reduce": 0.01,
        "host_memory": 1e9,
        "device_memory": 0.0,
        "flops": 0.0,
    }
    return RankFigures(**{**known, **more})


def test_speed_is_of_all_ranks_and_steps_are_everybodys() -> None:
    found = summed_up([rank(), rank(samples=790)], ["a", "b"], processes=1)
    assert found["samples"] == 1590
    assert found["samples_per_second"] == 159
    assert found["steps_per_second"] == 10
    assert [each["host"] for each in found["nodes"]] == ["a", "b"]
    assert [each["samples_per_second"] for each in found["nodes"]] == [80, 79]


def test_shares_add_up_to_the_window() -> None:
    found = summed_up([rank(), rank(data=2.0, forward_backward=5.0)], ["a", "a"], processes=2)
    assert found["share_data"] == pytest.approx(0.15)
    assert found["share_all_reduce"] == pytest.approx(0.1)
    assert found["share_forward_backward"] == pytest.approx(0.45)
    assert sum(value for name, value in found.items() if name.startswith("share_")) == pytest.approx(1)
    assert len(found["nodes"]) == 1


def test_the_slowest_rank_is_the_one_that_waits_least_for_the_others() -> None:
    found = summed_up([rank(all_reduce=0.04), rank(all_reduce=0.001), rank(all_reduce=0.03)], ["a", "b", "c"], 1)
    assert (found["slowest_rank"], found["slowest_host"]) == (1, "b")
    assert found["slowest_behind"] == pytest.approx(0.039 / 0.09, rel=1e-3)


@pytest.mark.parametrize("ranks", [[rank()], [rank(), rank(all_reduce=-1)], [rank(p50=0.0), rank(p50=0.0)]])
def test_nobody_is_called_slow_where_that_is_not_known(ranks: list[RankFigures]) -> None:
    assert not [name for name in summed_up(ranks, ["a"] * len(ranks), 1) if name.startswith("slowest")]


def test_a_wait_longer_than_the_gradients_took_is_no_more_than_those() -> None:
    found = summed_up([rank(all_reduce=1.0), rank(all_reduce=1.0)], ["a", "b"], 1)
    assert found["share_forward_backward"] == 0
    assert sum(value for name, value in found.items() if name.startswith("share_")) == pytest.approx(1)


def test_operations_a_second_are_known_where_the_model_says_them() -> None:
    assert summed_up([rank(flops=5e12), rank(flops=5e12)], ["a", "b"], 1)["flops_per_second"] == 1e12
    assert "flops_per_second" not in summed_up([rank()], ["a"], 1)


def test_a_straggler_is_named_once_it_persists_and_once_only() -> None:
    watch = StragglerWatch()
    slow = {"slowest_rank": 3, "slowest_host": "b", "slowest_behind": 0.23}
    said = [watch.see(slow) for _ in range(6)]
    assert said[:2] == [None, None]
    assert said[2] == "rank 3 on b is slow: the other ranks wait for it 23 % of each step"
    assert said[3:] == [None, None, None]


def test_ranks_that_take_turns_in_being_slowest_are_not_named() -> None:
    watch = StragglerWatch()
    windows = [{"slowest_rank": rank, "slowest_host": "a", "slowest_behind": 0.5} for rank in (0, 1, 1, 0, 0, 1)]
    assert [watch.see(each) for each in windows] == [None] * 6
    little = {"slowest_rank": 1, "slowest_host": "a", "slowest_behind": 0.05}
    assert [watch.see(little) for _ in range(5)] == [None] * 5
