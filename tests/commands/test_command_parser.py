"""A mistake on the command line of a command is one message, with the nearest allowed name."""

from collections.abc import Callable

import pytest

from pipeline.commands.command_parser import CommandParser, boolean
from pipeline.errors import UserError
from tests.support.commands import Ended

App = Callable[..., Ended]


def test_a_misspelt_flag_is_named_before_one_that_is_missing(app: App) -> None:
    ended = app("prune", "--run_dirr=x")
    assert ended.status == 2
    assert "unrecognized argument --run_dirr; did you mean '--run_dir'?" in ended.err
    assert "'maybe' must be true or false" in app("prune", "--run_dir=x", "--keep_last=1", "--dry_run=maybe").err


@pytest.mark.parametrize(
    "value", ["--trainer.max_epochs=5 --trainer.logger=false", "--trainer.max_epochs=5", "--nodes=2"]
)
def test_a_value_made_of_flags_may_stand_behind_a_space(value: str) -> None:
    parser = CommandParser("drill", "Drill.")
    parser.add_argument("--args", metavar="FLAGS")
    parser.add_argument("--resize", type=boolean, default=False)
    found = parser.parse(["--args", value, "--resize", "True"])
    assert (found.args, found.resize) == (value, True)
    with pytest.raises(UserError, match=r"unrecognized argument --resise; did you mean '--resize'\?"):
        parser.parse(["--resise=true"])
    with pytest.raises(UserError, match="unrecognized arguments: more"):
        parser.parse(["more"])
