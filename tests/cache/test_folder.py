"""The folder of the cache: where it is, what goes when it is full, and what must not."""

import errno
import gzip
import json
import os
import pickle
import subprocess
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from pipeline.cache import mapped
from pipeline.cache.folder import cache_folder
from pipeline.errors import UserError

DATA = bytes(3_000_001)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def unique() -> str:
    return f"memory://{uuid.uuid4().hex}"


def put(url: str, data: bytes) -> str:
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(path, data)
    return url


def bins(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.bin"))


def test_the_least_recently_used_go_when_the_limit_is_reached(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIPELINE_CACHE_BYTES", "3500")
    (folder / "a-folder.bin").mkdir(parents=True)
    (folder / "foreign.bin").write_bytes(DATA)
    urls = [put(unique(), bytes([n]) * 1000) for n in range(4)]
    second = [mapped(url) for url in urls[:3]][1]
    mapped(urls[0])
    mapped(urls[3])
    kept = {json.loads(path.read_text())["url"] for path in folder.glob("*.json")}
    assert kept == {urls[0], urls[2], urls[3]}
    assert second.tobytes() == b"\x01" * 1000, "what is mapped stays with its reader"
    assert pickle.loads(pickle.dumps(second)).tobytes() == b"\x01" * 1000, "a worker fetches it again"
    put(urls[3], b"x" * 3400)
    mapped(urls[3])
    assert sum(path.stat().st_size for path in bins(folder) if path.name != "foreign.bin" and path.is_file()) == 3400
    assert (folder / "a-folder.bin").is_dir()
    assert (folder / "foreign.bin").read_bytes() == DATA
    assert len(list(folder.glob("*.lock"))) == 1
    put(urls[2], gzip.compress(b"y" * 3501))
    for decompress, data in ((False, b"y" * 3501), (True, gzip.compress(b"y" * 3501))):
        put(urls[2], data)
        with pytest.raises(UserError, match=r"PIPELINE_CACHE_BYTES=3500: memory:\S+ has 3501 bytes"):
            mapped(urls[2], decompress=decompress)
    assert not list(folder.glob("*.part"))


def test_what_is_in_use_is_not_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_CACHE_BYTES", "1500")
    used, other = (put(unique(), bytes(1000)) for _ in range(2))
    mapped(used)
    (lock,) = folder.glob("*.lock")
    hold = f"""
import fcntl, sys
file = open({str(lock)!r})
fcntl.flock(file, fcntl.LOCK_SH)
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        mapped(other)
        assert len(bins(folder)) == 2
        holder.kill()
    mapped(put(other, bytes(1001)))
    assert len(bins(folder)) == 1
    assert not lock.exists(), "nothing is left of it"


def test_a_full_disk_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, usage = put(unique(), DATA), SimpleNamespace(free=10)
    with monkeypatch.context() as before:
        before.setattr("shutil.disk_usage", lambda path: usage)
        with pytest.raises(UserError, match=rf"PIPELINE_CACHE_DIR={folder}: 10 bytes .*\(3000001 bytes.*larger disk"):
            mapped(url)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)  # where a disk that allocates late says so
    with pytest.raises(UserError, match=f"PIPELINE_CACHE_DIR={folder}: .*larger disk"):
        mapped(url)
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written_gives_way_to_the_users_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("PIPELINE_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/torchx-lightning-pipeline"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative, which its specification ignores")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home/.cache/torchx-lightning-pipeline"
    monkeypatch.setenv("HOME", "/proc/nowhere")
    folder = cache_folder()
    assert folder == tmp_path / f"torchx-lightning-pipeline-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(UserError, match=r"open to others.*PIPELINE_CACHE_DIR"):
        cache_folder()
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="it is a link"):
        cache_folder()
    monkeypatch.setenv("PIPELINE_CACHE_DIR", "/proc/nowhere")
    with pytest.raises(UserError, match="PIPELINE_CACHE_DIR='/proc/nowhere' cannot be written"):
        cache_folder()


@pytest.mark.parametrize("value", ["50GB", "-1", "0", "1e9", " ", "9" * 30, "٣"])
def test_a_limit_that_is_no_number_of_bytes_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_CACHE_BYTES", value)
    with pytest.raises(UserError, match=r"PIPELINE_CACHE_BYTES=.* must be a whole number of bytes"):
        mapped(put(unique(), DATA))
