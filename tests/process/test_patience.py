"""How long a thread waits for what is away."""

import re
import threading

import pytest

from pipeline.errors import UserError
from pipeline.process import patience
from pipeline.process.patience import AWAY_LIMIT, Patience, given_away_limit
from tests.support.commands import ROOT


def test_a_thread_has_the_patience_of_its_block_and_a_new_thread_has_none() -> None:
    seen: list[Patience | None] = []
    with patience.patience(Patience(5)):
        assert patience.current() == Patience(5)
        thread = threading.Thread(target=lambda: seen.append(patience.current()))
        thread.start()
        thread.join()
        with patience.patience(None):
            assert patience.current() is None
        patience.end()
        assert patience.current() is None
    assert (patience.current(), seen) == (None, [None])


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [
        (["fit", "--run_dir", "x"], AWAY_LIMIT),
        (["test", "--away_limit=2.5"], 2.5),
        (["--away_limit", "0", "--away", "7"], 0.0),
    ],
)
def test_a_command_line_says_how_long_before_it_is_parsed(arguments: list[str], seconds: float) -> None:
    assert given_away_limit(arguments) == seconds


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon"])
def test_what_is_no_number_of_seconds_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"must be a number of seconds >= 0"):
        given_away_limit([f"--away_limit={text}"])


def test_nothing_of_ours_draws_from_the_users_random_numbers() -> None:
    draws = re.compile(r"(?<!np\.)\brandom\.(random|uniform|randint|randrange|choice|choices|sample|shuffle|gauss)\(")
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted((ROOT / "pipeline").rglob("*.py"))
        for line in path.read_text().splitlines()
        if draws.search(line)
    ]
    assert found == ["sample_seeding.py: lambda: random.gauss(0.0, 1.0),"], "what a check draws is put back"
