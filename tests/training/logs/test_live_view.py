"""On a terminal two rows show how far training is, no line is torn by them, and they leave the terminal as it was."""

import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from pipeline.training.logs.figures import Figures
from pipeline.training.logs.live_view import Painter
from tests.support.runs import ROWS
from tests.support.terminals import Watched

STEPS = 21
FIT = ("fit", *ROWS, "--model=tests.support.chatty.Chatty", "--trainer.max_epochs=3", "--checkpoints.every_n_steps=5")
FIRST_ROW = re.compile(r"epoch [123]/3(, validating)?  .*")


def program(run: Path, *more: object) -> list[object]:
    return [sys.executable, "-m", "pipeline", *FIT, "--model.seconds=0.15", "--run_dir", run, *more]


def assert_whole(lines: Sequence[str], steps: int = STEPS) -> None:
    """Nothing that was printed is torn, lost or doubled."""
    for step in range(steps):
        for text in ("printed in step {}, out loud", "written by C code in step {}, past Python"):
            assert lines.count(text.format(step)) == 1, "\n".join(lines)
        assert lines.count(f"logged in step {step}, by a logger") == 1, "\n".join(lines)
    assert lines.count("half a line, and its other half") == 1, "\n".join(lines)


def assert_as_before(terminal: Watched) -> None:
    assert terminal.screen.margins is None, "all rows scroll"
    assert not terminal.screen.cursor.hidden
    assert not [line for line in terminal.text.splitlines() if FIRST_ROW.fullmatch(line)], "no frame is left"


@pytest.mark.timeout(90)
def test_two_rows_show_training_while_all_that_is_printed_scrolls_above_them(tmp_path: Path) -> None:
    with Watched(program(tmp_path / "run"), rows=16, columns=110) as terminal:
        terminal.until(lambda: "own_loss" in terminal.rows[-1] and "checkpoint" in terminal.rows[-1])
        first, second = terminal.rows[-2:]
        shown = r"epoch [123]/3  .*━.*  step \d+/21  \d+ %  .* left  [\d.]+ samples/s"
        assert re.fullmatch(shown, first), first
        assert re.fullmatch(r"own_loss [\d.e-]+  (checkpoint \d+|saving a checkpoint)", second), second
        assert b"\x1b[36m" in terminal.raw, "in colours"
        assert terminal.status() == 0
        lines = terminal.text.splitlines()
        assert_whole(lines)
        assert_as_before(terminal)
        assert f"started on 1 node x 1 process: {tmp_path / 'run'}"[:110] in lines
        assert any(
            line.endswith("UserWarning: a warning of the model's own") or "a warning of" in line for line in lines
        )
        assert any(line.startswith("finished: step 21") for line in lines)


@pytest.mark.timeout(90)
def test_a_narrow_terminal_that_grows_and_shrinks_without_colours(tmp_path: Path) -> None:
    with Watched(program(tmp_path / "run"), rows=12, columns=60, NO_COLOR="1") as terminal:
        terminal.until(lambda: FIRST_ROW.match(terminal.rows[-2]) and "own_loss" in terminal.rows[-1])
        for size in ((20, 90), (14, 46)):
            terminal.resize(*size)
            terminal.until(lambda: FIRST_ROW.match(terminal.rows[-2]) and "own_loss" in terminal.rows[-1])
            assert len([row for row in terminal.rows if FIRST_ROW.match(row)]) == 1, "one frame, at the new bottom"
            assert all(len(row) < size[1] for row in terminal.rows[-2:])
        assert terminal.status() == 0
        assert_as_before(terminal)
        assert not re.search(rb"\x1b\[[0-9;]*m", terminal.raw), "no colour, nor any other style"


@pytest.mark.timeout(90)
@pytest.mark.parametrize("how", ["exception", "ctrl-c", "preempted"])
def test_however_training_ends_the_terminal_is_as_it_was(how: str, tmp_path: Path) -> None:
    fails = ["--model.fails_at=9"] if how == "exception" else []
    with Watched(program(tmp_path / "run", *fails), rows=16, columns=110) as terminal:
        terminal.until(lambda: FIRST_ROW.match(terminal.rows[-2]) and "own_loss" in terminal.rows[-1])
        if how != "exception":
            terminal.process.send_signal(signal.SIGINT if how == "ctrl-c" else signal.SIGTERM)
        assert terminal.status() == {"exception": 1, "ctrl-c": 130, "preempted": 75}[how], terminal.text
        assert_as_before(terminal)
        assert_whole(terminal.text.splitlines(), 3)


@pytest.mark.timeout(120)
def test_ranks_share_a_terminal_and_a_killed_one_leaves_nothing_on_it(tmp_path: Path) -> None:
    agent = (sys.executable, "-m", "pipeline.agent", "--nproc_per_node", "2", "--max_restarts", "0", "-m", "pipeline")
    more = ("--model=tests.support.chatty.WarnsOnRank1", "--model.seconds=0.4", "--run_dir", tmp_path / "run")
    with Watched([*agent, *FIT, *more], rows=16, columns=110) as terminal:
        terminal.until(lambda: "own_loss" in terminal.rows[-1], seconds=90)
        terminal.until(lambda: "rank 1: only rank 1 has this problem" in terminal.text.splitlines())
        for worker in workers_of(terminal.process.pid):
            os.kill(worker, signal.SIGKILL)
        assert terminal.status() == 137, terminal.text
        lines = terminal.text.splitlines()
        assert lines.count("rank 1: only rank 1 has this problem") == 1, terminal.text
        assert lines.count("every rank has this problem") == 1, terminal.text
        assert lines.count("printed in step 1, out loud") == 2, "both ranks print, as they were told"
        assert_as_before(terminal)


def workers_of(agent: int) -> list[int]:
    """The processes of an agent, but for its standby."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            line = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == agent and b"standby" not in line:
            found.append(int(path.name))
    return found


@pytest.mark.timeout(60)
@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"JPY_PARENT_PID": "1"}], ids=["dumb", "notebook"])
def test_a_terminal_without_rows_of_its_own_gets_lines(tmp_path: Path, variables: dict[str, str]) -> None:
    quick = [sys.executable, "-m", "pipeline", *FIT, "--run_dir", tmp_path / "run"]
    with Watched(quick, rows=16, columns=110, **variables) as terminal:
        assert terminal.status() == 0, terminal.text
        assert "\nepoch 1/3 ended: step 7/21" in terminal.text
        assert b"\x1b[" not in terminal.raw


FIGURES = Figures(
    *("training", 3, 20, 123, 400, 3, 20, 0.31, {"train_loss": 0.05, "val_loss": 0.04}),
    *(15_120.3, 236.2, 80.4, True, 120, 2),
)


def painter(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Painter:
    for name, value in {"TERM": "xterm", "NO_COLOR": "", **variables}.items():
        monkeypatch.setenv(name, value)
    return Painter()


@pytest.mark.parametrize(
    ("columns", "first"),
    [
        (110, r"epoch 3/20  ━+╺?╸?━+  step 123/400  31 %  1 min 20 s left  15,120 samples/s"),
        (75, r"epoch 3/20  step 123/400  31 %  1 min 20 s left  15,120 samples/s|epoch 3/20  .*left"),
        (45, r"epoch 3/20  ━+╺?╸?━+  step 123/400  31 %"),
        (36, r"epoch 3/20  step 123/400  31 %"),
        (20, r"epoch 3/20"),
    ],
)
def test_what_is_worth_least_goes_first_where_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch, columns: int, first: str
) -> None:
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in painter(monkeypatch).frame(FIGURES, columns)]
    assert re.fullmatch(first, plain[0].rstrip()), plain
    assert all(len(line) < columns for line in plain)
    whole = "train_loss 0.05  val_loss 0.04  saving a checkpoint  attempt 2"
    assert plain[1] == whole or (plain[1].endswith("…") and whole.startswith(plain[1][:-1]))


def test_a_wide_letter_takes_two_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = painter(monkeypatch, NO_COLOR="1").frame(replace(FIGURES, values={"损失" * 20: 1.0}), 40)
    assert cell_len(frame[1]) < 40


def test_a_stage_of_unknown_length_has_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = replace(FIGURES, share=None, seconds_left=None, steps=None, epochs=None)
    assert painter(monkeypatch, NO_COLOR="1").frame(unknown, 100)[0] == "epoch 3  step 123  15,120 samples/s"
