"""Amounts are written as people read them, and read as people write them."""

import pytest

from pipeline.commands.inspection.quantities import in_bytes, number, parse_bytes, shortened
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1.00 kB"), (1234, "1.23 kB"), (12_345, "12.3 kB")),
        *((999_499, "999 kB"), (999_500, "1.00 MB"), (80e9, "80.0 GB"), (1.5e12, "1.50 TB"), (9_996, "10.0 kB")),
    ],
)
def test_bytes_have_three_digits(value: float, text: str) -> None:
    assert in_bytes(value) == text


def test_a_number_without_a_unit_has_a_prefix_alone() -> None:
    assert (shortened(5), shortened(2_500_000), shortened(3e21)) == ("5", "2.50 M", "3000 E")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GB", 80 * 10**9),
        ("24 GiB", 24 * 2**30),
        ("1.5tb", 15 * 10**11),
        ("512 MiB", 2**29),
        ("7b", 7),
        ("4kB", 4000),
    ],
)
def test_memory_is_read_with_its_unit(text: str, size: int) -> None:
    assert parse_bytes("device_memory", text) == size


@pytest.mark.parametrize("text", ["80", "", "GB", "80 XB", "-1GB", "0GB", "1e3GB", "80G", "nanGB"])
def test_what_is_no_amount_of_memory_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"device_memory='.*' must be a number > 0 and its unit, such as 80GB"):
        parse_bytes("device_memory", text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-3, "-3"), (0.12345, "0.1235"), (1e7, "1e+07"), (123456, "123456"), (2.5e-9, "2.5e-09")],
)
def test_numbers_of_samples_are_short(value: float, text: str) -> None:
    assert number(value) == text
