"""The samples of a shard are found once, and a shard that is torn is named with its place."""

import io
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.formats import tar_index
from pipeline.formats.files import FileList
from pipeline.formats.tar_index import TarIndex, index_of
from tests.support.formats import put, tar_bytes

MEMBERS = [("d/0.jpg", b"x" * 700), ("d/0.cls", b"1"), ("d/1.seg.PNG", b"yy"), ("d/1.cls", b""), ("README", b"z")]


def found(path: Path, data: bytes) -> TarIndex:
    put(str(path), data)
    return index_of(FileList(str(path), (".tar",), "TarShards(source)"), 0)


def test_samples_are_files_of_one_name_up_to_its_first_dot(tmp_path: Path) -> None:
    index = found(tmp_path / "a.tar", tar_bytes(MEMBERS))
    assert index.keys.tolist() == ["d/0", "d/1"]
    assert index.parts == ["jpg", "cls", "seg.png"]
    assert index.sizes.tolist() == [[700, 1, -1], [-1, 0, 2]]
    assert index.offsets.tolist() == [[512, 2048, -1], [-1, 4096, 3072]]


def test_long_names_and_folders_are_as_tar_has_them(tmp_path: Path) -> None:
    long = "n" * 150
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as archive:
            folder = tarfile.TarInfo("folder.d")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            about = tarfile.TarInfo(f"{long}.txt")
            about.size = 3
            archive.addfile(about, io.BytesIO(b"abc"))
        index = found(tmp_path / "a.tar", out.getvalue())
        assert index.keys.tolist() == [long]
        start = int(index.offsets[0, 0])
        assert out.getvalue()[start : start + 3] == b"abc"


def test_a_shard_is_read_once_for_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = found(tmp_path / "a.tar", tar_bytes(MEMBERS))
    monkeypatch.setattr(tar_index, "_packed", None)
    again = index_of(FileList(str(tmp_path / "a.tar"), (".tar",), "x"), 0)
    assert again.offsets.tolist() == first.offsets.tolist()
    with pytest.raises(TypeError):
        found(tmp_path / "a.tar", tar_bytes(MEMBERS[:2]))  # another version


WHOLE = tar_bytes(MEMBERS)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file|no whole tar"),
        (b"no tar at all" * 100, "is no whole tar file"),
        (WHOLE[:900], r"is no whole tar file: .* at byte 1536 or later, behind d/0\.jpg"),
        (WHOLE[:1536], r"ends there without tar's end mark, at byte 1536 behind d/0\.jpg"),
        (WHOLE[:1600], "(no whole tar file|without tar's end mark)"),
        (WHOLE[:1536] + b"\xff" * 512 + WHOLE[2048:], r"has no tar header there, at byte 1536 behind d/0\.jpg"),
        (tar_bytes([MEMBERS[0], MEMBERS[0]]), r"has d/0\.jpg twice in one sample, again at byte 2048"),
    ],
)
def test_a_shard_that_is_torn_is_named_with_its_place(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as raised:
        found(tmp_path / "a.tar", data)
    assert "a.tar" in str(raised.value)
