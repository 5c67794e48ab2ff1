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


def test_a_value_of_several_words_may_begin_with_dashes() -> None:
    parser = CommandParser("drill", "Drill.")
    parser.add_argument("--args")
    parser.add_argument("--resize", type=boolean, default=False)
    found = parser.parse(["--args", "--trainer.max_epochs=5 --trainer.logger=false", "--resize", "True"])
    assert (found.args, found.resize) == ("--trainer.max_epochs=5 --trainer.logger=false", True)
    with pytest.raises(UserError, match=r"unrecognized argument --resise; did you mean '--resize'\?"):
        parser.parse(["--resise=true"])
    with pytest.raises(UserError, match="unrecognized arguments: more"):
        parser.parse(["more"])
