"""A dataset's files are listed in one order, told from others cheaply, and read on any storage."""

import json
import pickle
from pathlib import Path

import pytest

from pipeline.errors import StorageAway, UserError
from pipeline.formats import files as files_module
from pipeline.formats.files import FileList
from pipeline.run import storage as storage_module
from tests.support.formats import put

ENDINGS = (".bin",)


def written(url: str) -> str:
    for name in ("b/2.bin", "a.bin", "b/10.bin", "notes.txt", "_SUCCESS.bin", ".hidden/x.bin"):
        put(f"{url}/{name}", name.encode() * 100)
    return url


def names(files: FileList) -> list[str]:
    return [each.name for each in files.files]


def test_a_folder_is_listed_in_the_order_of_names_without_hidden_and_other_files(storage: str) -> None:
    files = FileList(written(storage), ENDINGS, "x")
    assert names(files) == ["a.bin", "b/10.bin", "b/2.bin"]
    assert files.contents([2, 0]) == [b"b/2.bin" * 100, b"a.bin" * 100]
    assert files.ranges([(1, 0, 4), (0, 5, 5), (0, 2, 6)]) == [b"b/10", b"", b"bin" + b"a"]
    assert bytes(files.map(1)[:8]) == b"b/10.bin"


def test_patterns_single_files_and_lists_are_named_as_well(storage: str) -> None:
    written(storage)
    assert names(FileList(f"{storage}/b/*.bin", ENDINGS, "x")) == ["10.bin", "2.bin"]
    assert names(FileList(f"{storage}/**/*.bin", ENDINGS, "x")) == ["a.bin", "b/10.bin", "b/2.bin"]
    several = FileList([f"{storage}/b/2.bin", f"{storage}/notes.txt"], ENDINGS, "x")
    assert names(several) == ["2.bin", "notes.txt"], "the order is the user's"
    assert several.contents([1]) == [b"notes.txt" * 100]


def test_what_does_not_fit_into_the_cache_is_read_by_ranges(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = written(f"{s3}/formats-ranges")
    monkeypatch.setenv("PIPELINE_CACHE_BYTES", "1000")
    files = FileList(url, ENDINGS, "x")
    assert not files.mapped
    assert files.ranges([(1, 0, 4), (0, 2, 6)]) == [b"b/10", b"bina"]
    opened = files.open(0)
    opened.seek(3)
    assert pickle.loads(pickle.dumps(files)).contents([0]) == [b"a.bin" * 100], "an open file is not pickled"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/nothing", "cannot be listed: FileNotFoundError"),
        ("/*.png", "matches no file"),
        ("", "no file that ends with"),
    ],
)
def test_what_is_not_there_is_the_users_to_change(storage: str, name: str, words: str) -> None:
    put(f"{storage}/a.txt", b"x")
    with pytest.raises(UserError, match=words) as raised:
        FileList(f"{storage}{name}", ENDINGS, "Table(source)")
    assert storage.rpartition("/")[2] in str(raised.value)
    with pytest.raises(UserError, match="must name a file"):
        FileList([], ENDINGS, "x")


def test_a_storage_that_is_away_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        protocol = "ram"

        def info(self, path: str) -> None:
            raise ConnectionError("refused")

    monkeypatch.setattr(storage_module, "url_to_fs", lambda url, **_: (Away(), url))
    with pytest.raises(StorageAway, match="does not answer"):
        FileList("ram://x", ENDINGS, "x")


def test_a_file_that_changes_under_a_reader_is_named(storage: str) -> None:
    files = FileList(written(storage), ENDINGS, "x")
    put(f"{storage}/a.bin", b"shorter")
    for read in (lambda: files.contents([0]), lambda: files.map(0)):
        with pytest.raises(UserError, match=r"a\.bin has .* when it was listed: it was changed"):
            read()


def test_the_fingerprint_tells_contents_apart_and_not_places(storage: str, tmp_path: Path) -> None:
    put(f"{storage}/a.bin", b"12345678")
    first = FileList(storage, ENDINGS, "x").fingerprint("how")
    assert first == FileList(f"{storage}/", ENDINGS, "x").fingerprint("how")
    assert first != FileList(storage, ENDINGS, "x").fingerprint("otherwise")
    put(f"{storage}/a.bin", b"12345679")
    assert first != FileList(storage, ENDINGS, "x").fingerprint("how"), "the same size, and another content"
    if "://" not in storage:
        put(str(tmp_path / "copy/a.bin"), b"12345678")
        assert first == FileList(str(tmp_path / "copy"), ENDINGS, "x").fingerprint("how"), "a copy on another node"


def test_the_fingerprint_of_large_files_reads_pieces_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "_WHOLE", 1000)
    monkeypatch.setattr(files_module, "_PIECE", 10)
    for name, size in (("a", 3000), ("b", 0), ("c", 7000)):
        (tmp_path / f"{name}.bin").write_bytes(bytes(size))
    pieces = list(files_module._pieces([3000, 0, 7000]))
    assert pieces[0] == (0, 0, 10)
    assert pieces[-1] == (2, 6990, 7000)
    assert {at for at, _, _ in pieces} == {0, 2}
    first = FileList(str(tmp_path), ENDINGS, "x").fingerprint()
    (tmp_path / "c.bin").write_bytes(bytes(6999) + b"\1")
    assert first != FileList(str(tmp_path), ENDINGS, "x").fingerprint()


def test_processes_of_one_start_list_a_bucket_once(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = written(f"{s3}/formats-listed")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", json.dumps(url))
    made = []
    real = FileList._list
    monkeypatch.setattr(FileList, "_list", lambda self, *given: made.append(given) or real(self, *given))
    lists = [names(FileList(url, ENDINGS, "x")) for _ in range(3)]
    assert lists == [["a.bin", "b/10.bin", "b/2.bin"]] * 3
    assert len(made) == 1
    put(f"{url}/c.bin", b"x")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert len(FileList(url, ENDINGS, "x")) == 4, "the next start lists again"
