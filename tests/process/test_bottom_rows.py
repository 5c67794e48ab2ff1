"""Rows at the bottom of a terminal stay apart from all that is printed, whoever prints it."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipeline.process import bottom_rows
from pipeline.process.bottom_rows import BottomRows
from tests.support.terminals import Terminal


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with Terminal(10, 30) as terminal:
        terminal.write("$ command\n")
        yield terminal


def test_lines_scroll_above_the_rows_and_none_is_torn(terminal: Terminal) -> None:
    rows = BottomRows(terminal.fd, 2)
    for number in range(20):
        rows.draw([f"bar {number}", f"values {number}"])
        terminal.write(f"line {number}\n")
    assert terminal.rows == [*(f"line {number}" for number in range(13, 20)), "", "bar 19", "values 19"]
    assert [line for line in terminal.text.splitlines() if line.startswith("line")] == [f"line {n}" for n in range(20)]


def test_a_frame_between_two_parts_of_a_line_leaves_it_whole(terminal: Terminal) -> None:
    rows = BottomRows(terminal.fd, 2)
    terminal.write("> ")
    rows.draw(["bar", "values"])
    terminal.write("typed into a debugger")
    rows.draw(["bar 2", "values"])
    terminal.write("\n")
    assert "> typed into a debugger" in terminal.rows


def test_the_terminal_is_as_it_was_afterwards(terminal: Terminal) -> None:
    rows = BottomRows(terminal.fd, 2)
    for number in range(20):
        terminal.write(f"line {number}\n")
        rows.draw([f"\x1b[36mbar {number}", "values"])
    rows.close()
    assert terminal.rows[-3:] == ["", "", ""], "the rows are empty"
    terminal.write("a\nb\nc\nd\n")
    assert terminal.rows[-5:] == ["a", "b", "c", "d", ""], "all rows scroll again"
    assert terminal.screen.margins is None
    assert terminal.screen.cursor.attrs.fg == "default"
    assert not terminal.screen.cursor.hidden


def test_other_processes_print_to_the_same_terminal(terminal: Terminal) -> None:
    rows = BottomRows(terminal.fd, 2)
    rows.draw(["bar", "values"])
    program = "import os\nfor n in range(30): os.write(2, f'rank 1: line {n}\\n'.encode())"
    others = [subprocess.Popen([sys.executable, "-c", program], stderr=terminal.fd) for _ in range(2)]
    number = 0
    while any(other.poll() is None for other in others):
        rows.draw([f"bar {(number := number + 1)}", "values"])
        terminal.read(0.001)
    rows.draw(["bar at the end", "values"])
    assert terminal.rows[-2:] == ["bar at the end", "values"]
    for line in range(30):
        assert terminal.text.splitlines().count(f"rank 1: line {line}") == 2


@pytest.mark.parametrize("size", [(14, 40), (7, 24), (10, 60), (10, 20)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_after_a_resize_the_rows_are_at_the_new_bottom_only(terminal: Terminal, size: tuple[int, int]) -> None:
    rows = BottomRows(terminal.fd, 2)
    rows.draw(["bar before", "values before"])
    terminal.write("line 1\n")
    terminal.resize(*size)
    rows.draw(["bar after", "values after"])
    terminal.write("line 2\n")
    shown = terminal.rows
    assert shown[-2:] == ["bar after", "values after"]
    assert "line 2" in shown
    assert "before" not in "\n".join(shown)


@pytest.mark.parametrize("size", [(5, 80), (24, 19)])
def test_a_terminal_that_is_too_small_shows_none_until_it_grows(terminal: Terminal, size: tuple[int, int]) -> None:
    rows = BottomRows(terminal.fd, 2)
    rows.draw(["bar", "values"])
    terminal.resize(*size)
    assert rows.columns == 0
    rows.draw([])
    terminal.write("line\n")
    assert terminal.screen.margins is None
    terminal.resize(10, 40)
    assert rows.columns == 40
    rows.draw(["bar", "values"])
    assert terminal.rows[-2:] == ["bar", "values"]


def test_a_frame_that_is_as_the_last_one_is_not_written(terminal: Terminal) -> None:
    rows = BottomRows(terminal.fd, 2)
    rows.draw(["bar", "values"])
    terminal.read()
    before = len(terminal.raw)
    rows.draw(["bar", "values"])
    terminal.read(0.05)
    assert len(terminal.raw) == before


def test_who_comes_after_a_killed_process_gives_its_rows_back(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    BottomRows(terminal.fd, 2).draw(["bar", "values"])
    terminal.write("killed\n")
    bottom_rows.release(terminal.fd)
    assert terminal.rows[:3] == ["$ command", "killed", ""]
    assert terminal.rows[-2:] == ["", ""]
    assert terminal.screen.margins is None


@pytest.mark.parametrize(
    ("variables", "suits"),
    [({}, True), ({"TERM": "dumb"}, False), ({"TERM": ""}, False), ({"JPY_PARENT_PID": "1"}, False)],
)
def test_where_rows_can_be_kept_apart(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], suits: bool
) -> None:
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    for name, value in {"TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    assert bottom_rows.suit(terminal.fd) == suits
    with open(os.devnull) as null:
        assert not bottom_rows.suit(null.fileno()), "no terminal"
