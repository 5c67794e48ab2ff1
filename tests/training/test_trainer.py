"""The subcommand that only looks at the model, and what is set right in Lightning's trainer."""

import re
from collections.abc import Callable

from tests.support.commands import DIGITS, Ended

App = Callable[..., Ended]


def test_summary_prints_the_table_with_the_sizes_of_every_layer_without_fit(app: App) -> None:
    ended = app("summary", "--config", DIGITS, "--max_depth", "-1", "--model.input_dim=784")
    assert ended.status == 0
    rows = re.findall(r"^\d+ +\| ([\w.]+) .*\| (\[[\d, ]+\]) +\| (\[[\d, ]+\])", ended.out, re.MULTILINE)
    assert len(rows) == 10
    assert rows[2] == ("encoder.l1.0", "[1, 784]", "[1, 64]")
    assert rows[9] == ("decoder.l1.2", "[1, 64]", "[1, 784]")
    assert len(re.findall(r"^\d+ +\| ", app("summary", "--config", DIGITS, "--max_depth=1").out, re.MULTILINE)) == 2


def test_summary_of_a_model_without_an_example_says_why_there_are_no_sizes(app: App) -> None:
    ended = app("summary", "--model", "tests.support.models.WithoutHyperparameters")
    assert ended.status == 0
    assert "example_input_array" in ended.err
    assert "layer" in ended.out
