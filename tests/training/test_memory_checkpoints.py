"""States in the memory of a node: as often as a fixed share of training pays for, and never at the expense of it."""

import logging
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.process.cgroup import MemoryCgroup
from pipeline.process.host_memory import HostMemory
from pipeline.process.topology import Topology
from pipeline.training.memory_checkpoints import SHARE, MemoryCheckpoints
from tests.support.checkpoints import a_record
from tests.support.host_memory import host_memory

ALONE = Topology(0, 0, 1, 1, 0, 1)
ABOUT = {"run": "r", "launch": "l", "attempt": 3}


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    with host_memory() as made:
        yield made


@pytest.fixture
def model() -> torch.nn.Module:
    return torch.nn.Linear(10, 10)


def state(model: torch.nn.Module, step: int) -> tuple[dict[str, Any], Any]:
    return {"state_dict": model.state_dict(), "global_step": step}, a_record(step)


def steps(memory: HostMemory) -> list[int]:
    return sorted(each.about["record"]["step"] for each in memory.states())


def test_a_state_is_a_checkpoint_file_and_says_whose_it_is(memory: HostMemory, model: torch.nn.Module) -> None:
    keeps = MemoryCheckpoints(memory, ALONE, ABOUT)
    keeps.begin(model)
    keeps.keep(model, lambda: state(model, 7))
    (held,) = memory.states()
    loaded = torch.load(memory.path(held), weights_only=True)
    assert loaded["global_step"] == 7
    assert torch.equal(loaded["state_dict"]["weight"], model.weight)
    assert {name: held.about[name] for name in ABOUT} == ABOUT
    with torch.no_grad():
        model.weight.zero_()
    assert torch.load(memory.path(held), weights_only=True)["state_dict"]["weight"].any(), "it is a copy"


def test_files_that_are_saved_elsewhere_keep_their_checksums(
    memory: HostMemory, model: torch.nn.Module, tmp_path: Path
) -> None:
    keeps = MemoryCheckpoints(memory, ALONE, ABOUT)
    keeps.begin(model)
    keeps.keep(model, lambda: state(model, 7))
    torch.save(model.state_dict(), tmp_path / "x.ckpt")
    with zipfile.ZipFile(tmp_path / "x.ckpt") as file:
        assert file.testzip() is None


def test_the_last_two_are_kept(memory: HostMemory, model: torch.nn.Module) -> None:
    keeps = MemoryCheckpoints(memory, ALONE, ABOUT)
    keeps.begin(model)
    for step in range(1, 5):
        keeps.keep(model, lambda step=step: state(model, step))
    assert steps(memory) == [3, 4]


def test_the_interval_follows_what_a_state_costs(memory: HostMemory, model: torch.nn.Module) -> None:
    keeps = MemoryCheckpoints(memory, ALONE, ABOUT)
    keeps.begin(model)
    assert not keeps.due, "training has just begun"

    def slow() -> tuple[dict[str, Any], Any]:
        time.sleep(0.004)
        return state(model, 1)

    for _ in range(5):
        keeps.keep(model, slow)
    began = time.monotonic()
    while not keeps.due:
        assert time.monotonic() - began < 30
        time.sleep(0.01)
    assert time.monotonic() - began > 0.004 / SHARE * 0.9


def test_a_save_is_kept_as_well_where_that_adds_little_to_its_pause(memory: HostMemory, model: torch.nn.Module) -> None:
    keeps = MemoryCheckpoints(memory, ALONE, ABOUT)
    keeps.begin(model)
    keeps.keep_saved(model, *state(model, 1))
    assert keeps.due_with_save(pause=60.0)
    assert not keeps.due_with_save(pause=1e-6)
    assert steps(memory) == [1]


def test_what_an_earlier_attempt_has_kept_is_forgotten_but_for_what_is_resumed(
    memory: HostMemory, model: torch.nn.Module
) -> None:
    before = MemoryCheckpoints(memory, ALONE, ABOUT)
    before.begin(model)
    for step in (1, 2):
        before.keep(model, lambda step=step: state(model, step))
    (resumed,) = (each for each in memory.states() if each.about["record"]["step"] == 1)
    after = MemoryCheckpoints(memory, ALONE, ABOUT, resumed.slot)
    assert steps(memory) == [1, 2], "until training begins"
    after.begin(model)
    assert steps(memory) == [1]
    after.keep(model, lambda: state(model, 2))
    assert steps(memory) == [1, 2], "the one that is resumed stays until there is a newer one"
    MemoryCheckpoints(memory, ALONE, ABOUT).begin(model)
    assert steps(memory) == []


def test_where_memory_is_short_nothing_is_kept_and_one_line_says_so(
    memory: HostMemory, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(MemoryCgroup, "free", lambda _: 1000)
    keeps = MemoryCheckpoints(memory, ALONE, ABOUT)
    keeps.begin(model)
    with caplog.at_level(logging.WARNING):
        keeps.keep(model, lambda: state(model, 1))
        keeps.keep(model, lambda: state(model, 2))
    assert [record.getMessage() for record in caplog.records] == [
        "no states are kept in the host memory of this node: 2 states need 0 MB, and 0 MB are free here"
    ]
    assert steps(memory) == []


def test_a_state_that_cannot_be_kept_ends_no_training(
    memory: HostMemory, model: torch.nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    keeps = MemoryCheckpoints(memory, ALONE, {**ABOUT, "run": "r" * 100_000})
    keeps.begin(model)
    with caplog.at_level(logging.WARNING):
        keeps.keep(model, lambda: state(model, 1))
        keeps.keep(model, lambda: state(model, 2))
    assert not keeps.due_with_save(pause=60.0), "there is no other node that could"
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("no states are kept in the host memory of this node: ValueError: 100")
    assert steps(memory) == []


def test_a_node_without_such_memory_takes_part(model: torch.nn.Module) -> None:
    keeps = MemoryCheckpoints(None, ALONE, ABOUT)
    keeps.begin(model)
    keeps.keep(model, lambda: state(model, 1))


def test_other_processes_of_a_node_keep_nothing(memory: HostMemory, model: torch.nn.Module) -> None:
    keeps = MemoryCheckpoints(memory, Topology(1, 1, 2, 2, 0, 1), ABOUT)
    keeps.begin(model)
    keeps.keep(model, lambda: (state(model, 1)[0], None))
    assert steps(memory) == []
