"""The plan of a drill is a pure function of its seed, and each kind of fault comes."""

from collections import Counter

import pytest

from pipeline.commands.drill.plan import Fault, FaultKind, plan

KINDS = tuple(FaultKind)


@pytest.mark.parametrize("seed", range(20))
def test_a_seed_always_makes_the_same_plan_in_which_each_kind_comes(seed: int) -> None:
    faults = plan(seed, 14, 60, KINDS, 3, 2)
    assert faults == plan(seed, 14, 60, KINDS, 3, 2)
    assert faults != plan(seed + 1, 14, 60, KINDS, 3, 2)
    assert [fault.number for fault in faults] == list(range(1, 15))
    assert set(Counter(fault.kind for fault in faults)) == set(KINDS)
    steps = [fault.planned_step for fault in faults if fault.planned_step is not None]
    assert steps == sorted(steps)
    assert 0 < steps[0] <= steps[-1] < 60
    assert all(fault.node < 3 and fault.process < 2 and 3 <= fault.seconds <= 6 for fault in faults)


def test_some_faults_come_while_processes_start_and_only_those_that_can() -> None:
    at_start: list[Fault] = []
    for seed in range(50):
        faults = plan(seed, 12, 60, KINDS, 2, 1)
        assert faults[0].planned_step is not None
        at_start += [fault for fault in faults if fault.planned_step is None]
    assert {fault.kind for fault in at_start} == {kind for kind in KINDS if kind.is_signal}
    assert {str(kind) for kind in KINDS if not kind.is_signal} == {
        *("truncate", "outage", "outage_start", "outage_data", "resize", "term_twice", "term_start", "extend")
    }


def test_only_who_is_asked_once_has_the_time_to_save() -> None:
    assert {str(kind) for kind in KINDS if kind.asks} == {"term_rank", "term_agent", "term_all", "resize"}


def test_fewer_faults_than_kinds_are_of_different_kinds() -> None:
    assert len({fault.kind for fault in plan(1, 4, 60, KINDS, 2, 1)}) == 4
