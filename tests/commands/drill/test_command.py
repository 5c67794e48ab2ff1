"""The flags of a drill, and the exit status that says whether nothing was lost."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commands.command_parser import CommandParser
from pipeline.commands.drill import command, runner
from pipeline.errors import UserError
from tests.support.commands import Ended

App = Callable[..., Ended]


def parser() -> CommandParser:
    made = CommandParser("drill", "Drill.")
    command.add_arguments(made)
    return made


def test_what_is_not_given_has_its_documented_default() -> None:
    found = vars(parser().parse(["--config=a.yaml", "--run_dir=x"]))
    assert found == {
        "config": "a.yaml",
        "run_dir": "x",
        "faults": 12,
        "seed": 7,
        "nodes": 2,
        "processes": 1,
        "resize": False,
        "kinds": "",
        "save_every": 2.0,
        "recovery": "memory",
        "args": "",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--run_dir=x",), "--config"),
        (("--config=a.yaml",), "--run_dir"),
        (("--config=a.yaml", "--run_dir=x", "--resize=perhaps"), "'perhaps' must be true or false"),
        (("--config=a.yaml", "--run_dir=x", "--faults=many"), "invalid int value: 'many'"),
    ],
)
def test_a_mistake_is_named(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        parser().parse(arguments)


@pytest.mark.parametrize(("holds", "status"), [(True, 0), (False, 1)])
def test_the_report_is_printed_and_the_status_says_whether_all_held(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holds: bool, status: int
) -> None:
    # A real drill takes a minute: see test_runner.
    monkeypatch.setattr(runner, "drill", lambda options: (f"{options.faults} faults of {options.config}", holds))
    ended = app("drill", "--config=a.yaml", "--run_dir", tmp_path, "--faults=3")
    assert (ended.status, ended.out) == (status, "3 faults of a.yaml\n")
