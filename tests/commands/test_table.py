"""Columns are as wide as their widest cell."""

from pipeline.commands.table import table


def test_columns_are_aligned() -> None:
    rows = [("name", "count"), ("a", "10"), ("longer", "7")]
    assert table(rows, ("name",)) == ["name    count", "a          10", "longer      7"]
