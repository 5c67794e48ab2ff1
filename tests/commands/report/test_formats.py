"""Numbers are printed aligned and short, and what is none is a dash."""

import math
from typing import Any

import pytest

from pipeline.commands.report import formats


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (1257, "1,257"),
        (3.0, "3"),
        (0.0381402, "0.0381402"),
        (1e-9, "1e-09"),
        (1e300, "1e+300"),
        (10**400, "-"),
        (math.nan, "-"),
        (math.inf, "-"),
        ("7", "-"),
        (True, "-"),
        (None, "-"),
    ],
)
def test_a_number_of_any_file_can_be_printed(value: Any, shown: str) -> None:
    assert formats.number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_400_000, "1.4 MB"),
        (2e10, "20 GB"),
        (5e15, "5e+03 TB"),
        ("x", "-"),
    ],
)
def test_sizes_have_a_unit(value: Any, shown: str) -> None:
    assert formats.size(value) == shown


def test_times_are_utc_and_to_the_second() -> None:
    assert formats.moment("2026-11-24T13:10:00.500+01:00") == "2026-11-24 12:10:00"
    for damaged in ("yesterday", None, 3, "2026-11-24T12:10:00"):
        assert formats.moment(damaged) == "-"


def test_shares_durations_and_counts() -> None:
    assert formats.share(0.8731) == "87.3 %"
    assert formats.share("x") == "-"
    assert formats.seconds(-1) == "-"
    assert formats.seconds(200) == "3 min 20 s"
    assert formats.count(1257) == "1,257"
    assert formats.count(1.5) == "-"
    assert formats.plural(1, "epoch") == "1 epoch"
    assert formats.plural(1200, "epoch") == "1,200 epochs"
