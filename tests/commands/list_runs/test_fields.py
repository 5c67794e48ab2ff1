"""Each value of a run has one name, and one way to be written."""

from datetime import UTC, datetime, timedelta

import pytest

from pipeline.commands.list_runs.fields import FIELDS, MISSING, ago, bytes_of, known_names, name, size, text, value
from tests.support.summaries import a_run


def test_a_name_is_the_run_s_own_or_a_key_or_a_metric() -> None:
    run = a_run("group/x", 0.5, config={"model.learning_rate": 0.1}, metrics={"test_loss": 0.2}, bytes=7)
    found = {key: value(run, key, "runs") for key in ("name", "metric", "size", "model.learning_rate", "test_loss")}
    assert found == {"name": "group/x", "metric": 0.5, "size": 7, "model.learning_rate": 0.1, "test_loss": 0.2}
    assert value(run, "goodput", "runs") is MISSING
    assert value(run, "nope", "runs") is MISSING
    assert known_names([run]) == [*FIELDS, "model.learning_rate", "test_loss"]
    assert name(run, "runs/group/x") == "runs/group/x", "the URL is the run itself"


@pytest.mark.parametrize(
    ("count", "written"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (12_345_678_901, "12.3 GB"),
    ],
)
def test_sizes(count: int, written: str) -> None:
    assert size(count) == written
    assert bytes_of(written) == pytest.approx(count, rel=0.05)


@pytest.mark.parametrize(("written", "count"), [("1.5GB", 1.5e9), ("200 mb", 2e8), ("7", 7), ("x", None), ("GB", None)])
def test_sizes_that_a_person_writes(written: str, count: float | None) -> None:
    assert bytes_of(written) == count


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (-5, "0 s ago"),
        (59, "59 s ago"),
        (61, "1 min ago"),
        (7200, "2 h ago"),
        (90_000, "25 h ago"),
        (3 * 86400, "3 d ago"),
    ],
)
def test_how_long_ago(seconds: float, written: str) -> None:
    assert ago(datetime.now(UTC) - timedelta(seconds=seconds)) == written


@pytest.mark.parametrize(
    ("found", "written"),
    [
        (MISSING, ""),
        (None, "null"),
        (True, "true"),
        (0.003, "0.003"),
        ([8, "a"], '[8, "a"]'),
        ("a\n b\x1b[31m", "a b\ufffd[31m"),
    ],
)
def test_a_value_is_one_line_that_no_terminal_obeys(found: object, written: str) -> None:
    assert text(found) == written
