"""Which form a process's lines have, and that a line for machines is JSON whatever it says."""

import json
import math

import pytest

from pipeline.errors import UserError
from pipeline.process.log_format import VARIABLE, chosen, json_line
from pipeline.process.output import print_line


@pytest.mark.parametrize(
    ("arguments", "environment", "found"),
    [
        ([], {}, "text"),
        ([], {VARIABLE: "json"}, "json"),
        ([], {VARIABLE: ""}, "text"),
        (["fit", "--log_format", "json"], {}, "json"),
        (["fit", "--log_format=text", "--x=1"], {VARIABLE: "json"}, "text"),
        (["fit", "--log_format=text", "--log_format=json"], {}, "json"),
        (["fit", "--log_formats=json"], {}, "text"),
    ],
)
def test_the_flag_comes_before_the_environment(arguments: list[str], environment: dict[str, str], found: str) -> None:
    assert chosen(arguments, environment) == found


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--log_format=xml"], {}, "log_format='xml' must be text or json"),
        ([], {VARIABLE: "xml"}, f"{VARIABLE}='xml' must be text or json"),
        (["--log_format"], {}, "must be text or json"),
    ],
)
def test_another_form_is_one_message(arguments: list[str], environment: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        chosen(arguments, environment)


def test_a_line_for_machines_is_strict_json_with_the_same_first_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    line = json_line(
        "two\nlines", "info", "pipeline.x", 0.5, loss=math.nan, values={"a": math.inf, "b": 1.5}, more=(1, None, {2})
    )
    assert "\n" not in line

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found = json.loads(line, parse_constant=refuse)
    assert list(found)[:5] == ["time", "level", "rank", "logger", "message"]
    assert found == {
        "time": "1970-01-01T00:00:00.500Z",
        "level": "info",
        "rank": 3,
        "logger": "pipeline.x",
        "message": "two\nlines",
        "loss": "nan",
        "values": {"a": "inf", "b": 1.5},
        "more": [1, None, "{2}"],
    }


def test_what_is_printed_without_a_logger_has_the_form_that_was_asked_for(
    as_json: None, capsys: pytest.CaptureFixture[str]
) -> None:
    print_line("error: a mistake", level="error")
    found = json.loads(capsys.readouterr().err)
    assert (found["level"], found["message"], found["rank"]) == ("error", "error: a mistake", None)


@pytest.fixture
def as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process writes for machines."""
    from pipeline.process.log_format import JSON, OWN

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(OWN, "name", JSON)
