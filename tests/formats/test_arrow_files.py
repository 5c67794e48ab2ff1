"""A damaged file of Parquet or Arrow is named with its place, whatever is wrong with it."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.formats.arrow_files import ENDINGS, ArrowFile
from pipeline.formats.files import FileList
from tests.support.formats import arrow_table, put, table_bytes

KINDS = ("parquet", "arrow", "stream", "lz4")


def opened(path: Path, data: bytes) -> ArrowFile:
    put(str(path), data)
    return ArrowFile(FileList(str(path), ENDINGS, "Table(source)"), 0)


def read_all(file: ArrowFile) -> list[pa.Array]:
    return [file.read(chunk, ["label", "name"])[0]["label"] for chunk in range(len(file.chunks))]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_known_by_its_content_and_read_chunk_by_chunk(kind: str, tmp_path: Path) -> None:
    file = opened(tmp_path / "x.arrow", table_bytes(arrow_table(40), kind))
    assert file.chunks == [16, 16, 8]
    assert file.parquet is (kind == "parquet")
    columns, size = file.read(2, ["name", "label"])
    assert columns["label"].to_pylist() == arrow_table(40)["label"].to_pylist()[32:]
    assert (size == 0) is (kind in ("arrow", "stream")), "what lies in the mapped file takes no memory"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [0.0, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_named_with_its_size(kind: str, cut: float, tmp_path: Path) -> None:
    data = table_bytes(arrow_table(40), kind)
    size = int(len(data) * cut)
    with pytest.raises(UserError) as raised:
        opened(tmp_path / "x.arrow", data[:size])
    assert "x.arrow" in str(raised.value)
    assert str(size) in str(raised.value) or size == 0


@pytest.mark.parametrize("kind", KINDS)
def test_damage_anywhere_is_an_error_of_the_user_or_other_values_and_never_a_crash(kind: str, tmp_path: Path) -> None:
    data = table_bytes(arrow_table(40), kind)
    said = []
    for place in range(8, len(data), max(1, len(data) // 60)):
        damaged = bytearray(data)
        damaged[place : place + 4] = b"\xff\xee\xdd\xff"
        try:
            read_all(opened(tmp_path / "x.arrow", bytes(damaged)))
        except UserError as error:
            said.append(str(error))
    assert len(said) > 5
    assert all("x.arrow" in each for each in said)


def test_a_damaged_row_group_is_named_with_its_byte_and_its_rows(tmp_path: Path) -> None:
    data = bytearray(table_bytes(arrow_table(40), "parquet"))
    file = opened(tmp_path / "x.parquet", bytes(data))
    start = file._reader.metadata.row_group(1).column(1).data_page_offset
    data[start + 20 : start + 60] = bytes(40)
    with pytest.raises(UserError, match=r"x\.parquet: row group 1 at byte \d+ \(rows 16 to 31\) is damaged"):
        read_all(opened(tmp_path / "x.parquet", bytes(data)))


def test_what_is_neither_is_named_by_what_it_begins_with(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither Parquet nor Arrow: it begins with b'hello '"):
        opened(tmp_path / "x.arrow", b"hello world")
    with pytest.raises(UserError, match="Feather of version 1"):
        opened(tmp_path / "x.arrow", b"FEA1....")
