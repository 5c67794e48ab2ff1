"""What a restart hides of earlier events files is what is logged again, and nothing else."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from pipeline.training.logs.event_files import OF_TESTS, Restart, beginning, mark, read_events, restart_at


def value(step: int, number: float, tag: str = "loss") -> Any:
    return Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=number)]))


class Attempts:
    """The events files of a run, one for each attempt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._clock = count(1.0)
        self._number = count(1)

    def write(self, *events: Any, suffix: str = "") -> None:
        writer = EventFileWriter(str(self.folder / "new"), filename_suffix=suffix)
        for event in events:
            event.wall_time = next(self._clock)
            writer.add_event(event)
        writer.close()
        (path,) = (self.folder / "new").iterdir()
        path.rename(self.folder / f"events.out.tfevents.{next(self._number):010d}{suffix}")

    def files(self) -> list[tuple[str, bytes]]:
        found = sorted(self.folder.glob("events.*"), reverse=True)
        return [(path.name, path.read_bytes()) for path in found]

    def restart(self, step: int) -> Restart:
        return restart_at(step, self.files())

    def shown(self, tag: str = "loss") -> list[tuple[int, float]]:
        found = EventAccumulator(str(self.folder), size_guidance={"scalars": 0}).Reload()
        return [(event.step, event.value) for event in found.Scalars(tag)]


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    return Attempts(tmp_path)


def test_an_attempt_that_ended_at_its_checkpoint_leaves_nothing_to_hide(attempts: Attempts) -> None:
    attempts.write(mark(0), value(0, 1), value(1, 2), mark(2))
    assert attempts.restart(2) == Restart()


def test_what_comes_after_the_checkpoint_is_hidden_and_logged_once_more(attempts: Attempts) -> None:
    attempts.write(mark(0), value(0, 1), value(1, 2), mark(2), value(2, 3), value(3, 4))
    attempts.write(*beginning(attempts.restart(2)), mark(2), value(2, 30))
    assert attempts.shown() == [(0, 1), (1, 2), (2, 30)]


def test_what_stands_at_the_checkpoints_own_step_is_told_from_what_comes_after_it(attempts: Attempts) -> None:
    """A validation logs at 1 (Lightning's count) and 2 (`global_step`), the next batch at 2, all after two steps."""
    before = value(0, 1), value(1, 2), value(1, 9, "val"), value(2, 9, "own")
    attempts.write(mark(0), *before, mark(2), value(2, 3))
    attempts.write(*beginning(attempts.restart(2)), mark(2), value(2, 30))
    assert attempts.shown() == [(0, 1), (1, 2), (2, 30)]
    assert attempts.shown("val") == [(1, 9)]
    assert attempts.shown("own") == [(2, 9)]


def test_a_validation_that_comes_first_after_a_resume_is_shown_once(attempts: Attempts) -> None:
    attempts.write(mark(0), value(0, 1), value(1, 2), mark(2))  # preempted in the validation
    attempts.write(*beginning(attempts.restart(2)), mark(2), value(1, 9, "val"), value(2, 3))  # killed
    attempts.write(*beginning(attempts.restart(2)), mark(2), value(1, 9, "val"))
    assert attempts.shown("val") == [(1, 9)]
    assert attempts.shown() == [(0, 1), (1, 2)]


def test_several_kills_one_of_them_back_to_an_earlier_checkpoint(attempts: Attempts) -> None:
    attempts.write(mark(0), value(0, 1), mark(1), value(1, 2), mark(2), value(2, 3))
    attempts.write(*beginning(attempts.restart(2)), mark(2), value(2, 30), mark(3), value(3, 40))
    attempts.write(*beginning(attempts.restart(1)), mark(1), value(1, 200), value(2, 300))
    attempts.write(*beginning(attempts.restart(1)), mark(1), value(1, 2000), mark(2))
    assert attempts.shown() == [(0, 1), (1, 2000)]
    assert attempts.restart(2) == Restart()


def test_a_run_that_was_killed_before_its_first_checkpoint_shows_nothing_of_it(attempts: Attempts) -> None:
    attempts.write(mark(0), value(0, 1), value(1, 2))
    attempts.write(*beginning(attempts.restart(0)), mark(0), value(0, 10))
    assert attempts.shown() == [(0, 10)]


def test_of_files_without_marks_all_from_the_step_on_is_hidden(attempts: Attempts) -> None:
    attempts.write(value(0, 1), value(1, 2), value(2, 3))
    assert attempts.restart(2) == Restart(2)
    assert attempts.restart(3) == Restart()


def test_values_at_steps_of_their_own_are_not_lost(attempts: Attempts) -> None:
    """`self.log("step", epoch)` has a curve's steps count epochs."""
    attempts.write(mark(0), *(value(step, step) for step in range(40)), value(0, 1, "by_epoch"), mark(40))
    attempts.write(value(1, 2, "by_epoch"), value(40, 40))
    attempts.write(*beginning(attempts.restart(40)), mark(40), value(1, 2, "by_epoch"), value(40, 40))
    assert attempts.shown() == [(step, step) for step in range(41)]
    assert attempts.shown("by_epoch") == [(0, 1), (1, 2)]


def test_what_a_test_logged_stays(attempts: Attempts) -> None:
    attempts.write(mark(0), value(0, 1), value(1, 2), mark(2))
    attempts.write(value(2, 7, "test"), suffix=OF_TESTS)
    attempts.write(*beginning(attempts.restart(2)), mark(2), value(2, 3))
    attempts.write(*beginning(attempts.restart(2)), mark(2), value(2, 30))
    assert attempts.shown("test") == [(2, 7)]
    assert attempts.shown() == [(0, 1), (1, 2), (2, 30)]


def test_no_more_files_are_read_than_needed(attempts: Attempts) -> None:
    for part in range(5):
        attempts.write(*(value(10 * part + step, 1) for step in range(10)), mark(10 * part + 10))
    read = []

    def files() -> Any:
        for name, data in attempts.files():
            read.append(name)
            yield name, data

    assert restart_at(50, files()) == Restart()
    assert len(read) == 2


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_file_is_read_up_to_its_last_whole_event(attempts: Attempts, cut: int) -> None:
    attempts.write(value(0, 1), value(1, 2))
    ((_, data),) = attempts.files()
    assert [event.step for event in read_events(data[:-cut]) if event.HasField("summary")] == [0]


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"\x05" + bytes(11) + b"\xff" * 9])
def test_what_is_no_events_file_holds_no_events(data: bytes) -> None:
    assert list(read_events(data)) == []
