"""The memory of an agent: whole states only, whenever the process that writes them is killed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.process.host_memory import VARIABLE, HostMemory
from tests.support.commands import ROOT
from tests.support.host_memory import host_memory

KEEP = """
import os, sys
from pipeline.process.host_memory import HostMemory
memory = HostMemory.of_environment()
if memory is None:
    sys.exit(7)
with memory.writing() as (file, hold):
    file.write(b"x" * 100_000)
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), 9)
    hold({"step": int(sys.argv[1])})
"""


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    """As this process, its agent, sees it."""
    with host_memory() as made:
        yield made


def keep(memory: HostMemory, step: int, content: bytes = b"state") -> None:
    with memory.writing() as (file, hold):
        file.write(content)
        hold({"step": step})


def held(memory: HostMemory) -> dict[int, bytes]:
    return {each.about["step"]: Path(memory.path(each)).read_bytes() for each in memory.states()}


def test_at_first_nothing_is_held(memory: HostMemory) -> None:
    assert memory.states() == []


def test_the_two_newest_states_are_held(memory: HostMemory) -> None:
    for step in range(1, 6):
        keep(memory, step, b"%d" % step)
        assert held(memory) == {each: b"%d" % each for each in (step - 1, step) if each}


def test_a_shorter_state_after_a_longer_one_has_its_own_length(memory: HostMemory) -> None:
    for step, length in enumerate((50_000, 60_000, 3, 70_000)):
        keep(memory, step, b"x" * length)
        assert len(held(memory)[step]) == length


def test_a_state_that_could_not_be_written_leaves_the_newest_one(memory: HostMemory) -> None:
    keep(memory, 1)
    keep(memory, 2)
    with suppress(InterruptedError), memory.writing() as (file, _):
        file.write(b"half")
        raise InterruptedError
    assert list(held(memory)) == [2]
    keep(memory, 3)
    assert sorted(held(memory)) == [2, 3]


def test_more_can_be_said_of_a_state_than_there_is_room_for(memory: HostMemory) -> None:
    with pytest.raises(ValueError, match="bytes say what the state is"), memory.writing() as (_, hold):
        hold({"why": "x" * 100_000})
    assert memory.states() == []


def test_what_is_forgotten_takes_no_memory(memory: HostMemory) -> None:
    keep(memory, 1)
    keep(memory, 2)
    (spare,) = (each for each in memory.states() if each.about["step"] == 1)
    memory.forget(spare=spare.slot)
    assert held(memory) == {1: b"state"}
    assert sum(os.stat(f"/proc/self/fd/{fd}").st_size for fd in _slots(memory)) == len(b"state")
    memory.forget()
    assert memory.states() == []


def _slots(memory: HostMemory) -> list[int]:
    return [int(Path(path).name) for path in memory._slots]


def test_what_nobody_wrote_there_is_no_state(memory: HostMemory) -> None:
    keep(memory, 1)
    index = int(Path(memory._index).name)
    for junk in (b"", b"\xff" * 4096, b"{" * 4096):
        os.pwrite(index, junk.ljust(4096, b"\1"), 0)
        assert memory.states() == []


def test_a_state_that_was_cut_off_is_none(memory: HostMemory) -> None:
    keep(memory, 1)
    os.truncate(f"/proc/self/fd/{_slots(memory)[memory.states()[0].slot]}", 2)
    assert memory.states() == []


def child(*arguments: str, shell: bool = False) -> int:
    command = [sys.executable, "-c", KEEP, *arguments]
    if shell:
        command = [sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))", *command]
    return subprocess.run(command, check=False, cwd=ROOT, timeout=30).returncode


def test_it_outlives_the_worker_that_has_written_it(memory: HostMemory) -> None:
    assert child("5") == 0
    assert [each.about["step"] for each in memory.states()] == [5]


def test_a_worker_that_is_killed_as_it_writes_leaves_the_state_before(memory: HostMemory) -> None:
    keep(memory, 1)
    assert child("killed") == -9
    assert held(memory) == {1: b"state"}


def test_a_process_that_a_worker_starts_has_none(memory: HostMemory) -> None:
    assert child("5", shell=True) == 7
    assert memory.states() == []


def test_without_an_agent_there_is_none() -> None:
    for value in ("", "1", f"{os.getppid()}:", f"{os.getppid()}:1,2", f"{os.getppid()}:900,901,902"):
        assert HostMemory.of_environment({VARIABLE: value}) is None
