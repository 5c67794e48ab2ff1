"""Small files are whole or absent, created once, and replaced only where they are what was read."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.run import storage as files


def test_of_several_that_create_a_file_at_once_one_succeeds(storage: str) -> None:
    fs, path = files.open_filesystem(f"{storage}/x", "x")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: files.create(fs, path, b"%d" % n), range(8)))
    assert sum(won) == 1
    assert files.read(fs, path) == b"%d" % won.index(True)


@pytest.mark.parametrize("links", [True, False])
def test_a_file_on_a_disk_is_created_once_with_and_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    fs, path = files.open_filesystem(f"{tmp_path}/folder/x", "x")
    assert files.create(fs, path, b"first")
    assert not files.create(fs, path, b"second")
    assert files.read(fs, path) == b"first"
    assert os.listdir(tmp_path / "folder") == ["x"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, path = files.open_filesystem(f"{tmp_path}/x", "x")
    files.write(fs, path, b"old")

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="full"):
        files.write(fs, path, b"new")
    assert files.read(fs, path) == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_file_is_put_whole_or_the_one_that_was_there_stays(storage: str) -> None:
    fs, path = files.open_filesystem(f"{storage}/put/x", "x")
    files.put(fs, path, lambda file: file.write(b"first"))

    def fails(file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.put(fs, path, fails)
    assert fs.cat_file(path) == b"first"
    files.put(fs, path, lambda file: file.write(b"second"))
    assert fs.cat_file(path) == b"second"


def test_on_s3_a_file_is_replaced_only_if_its_etag_is_the_same(s3: str, tmp_path: Path) -> None:
    fs, path = files.open_filesystem(f"{s3}/{tmp_path.name}-{os.getpid()}/x", "x")
    assert files.replace(fs, path, b"none", '"00000000000000000000000000000000"') is None
    files.write(fs, path, b"first")
    etag = fs.info(path)["ETag"]
    new = files.replace(fs, path, b"second", etag)
    assert new is not None
    assert files.replace(fs, path, b"third", etag) is None
    assert files.replace(fs, path, b"fourth", new) is not None
    assert files.read(fs, path) == b"fourth"


def test_a_protocol_that_is_unknown_or_not_installed_is_named() -> None:
    with pytest.raises(UserError, match=r"x='nosuch://x': .*must be a local path or a URL"):
        files.open_filesystem("nosuch://x", "x='nosuch://x'")


@pytest.mark.parametrize(("lasted", "apart"), [(0, 30), (2999, 30), (10_000, 100), (30_000, 300), (1e7, 300)])
def test_copies_of_a_log_are_further_apart_the_longer_it_lasts(lasted: float, apart: float) -> None:
    assert files.seconds_between_copies(lasted, 30.0) == pytest.approx(apart)
