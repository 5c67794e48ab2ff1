"""Files on a URL: fetched once a node, verified, bounded, mapped; whatever is killed, damaged, full or unreachable."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.cache import fetch, mapped
from pipeline.commands.drill.proxy import ForwardProxy
from pipeline.errors import UserError
from tests.support.commands import ROOT, command
from tests.support.web_host import DATA, Host

READ = """
import hashlib, os, sys
from pipeline.cache import mapped
array = mapped(sys.argv[1], decompress=len(sys.argv) > 2)
print(hashlib.sha256(array.data).hexdigest(), os.stat(array.source.path).st_ino)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "_PAUSE", 0)
    return tmp_path / "cache"


def reader(url: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", READ, url, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def bins(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.bin"))


def put(url: str, data: bytes) -> str:
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(path, data)
    return url


def test_a_file_of_every_storage_is_fetched_and_described(storage: str, folder: Path) -> None:
    (folder.parent / "run").mkdir()
    url = put(f"{storage}/file", gzip.compress(DATA[:1000]) + gzip.compress(DATA[1000:]))
    digest = hashlib.sha256(fsspec.open(url).open().read()).hexdigest()
    for _ in range(2):
        array = mapped(url, sha256=f"sha256:{digest}", decompress=True)
        assert array.tobytes() == DATA
    (record,) = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    assert record["schema"] == 1
    assert (record["url"], record["bytes"]) == (url, len(DATA))
    assert record["sha256"] == f"sha256:{hashlib.sha256(DATA).hexdigest()}"
    assert record["source_sha256"] == f"sha256:{digest}"
    assert sorted(path.suffix for path in folder.iterdir()) == [".bin", ".json", ".lock"]


def test_several_processes_fetch_once(s3: str, folder: Path, host: Host) -> None:
    host.slow.set()
    url = put(f"{s3}/{uuid.uuid4().hex}", DATA)
    processes = [reader(each) for each in (url, host.url) * 3]
    host.started.wait(20)
    threading.Timer(1, host.slow.clear).start()
    seen = set()
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        digest, inode = out.split()
        assert digest == hashlib.sha256(DATA).hexdigest()
        seen.add(inode)
    assert host.requests.count("GET") == 1
    assert len(seen) == 2, "a second fetch would have made another file"


def test_a_reader_killed_in_mid_download_leaves_nothing_to_be_taken(host: Host, folder: Path) -> None:
    host.slow.set()
    killed = reader(host.url)
    assert host.started.wait(20)
    deadline = time.monotonic() + 20
    while not list(folder.glob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=20)
    (torn,) = folder.glob("*.part")
    assert not bins(folder)
    host.slow.clear()
    torn.rename(torn.with_name(f"{torn.name[:33]}{'0' * 16}.part"))  # as of another version
    assert mapped(host.url).tobytes() == DATA
    assert not list(folder.glob("*.part"))


def test_the_next_process_goes_on_where_the_one_with_the_lock_dies(host: Host, folder: Path) -> None:
    host.slow.set()
    first = reader(host.url)
    assert host.started.wait(20)
    second = reader(host.url)
    deadline = time.monotonic() + 20
    while len(host.requests) < 3 and time.monotonic() < deadline:  # the second has asked, and waits
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=20)
    host.slow.clear()
    out, err = second.communicate(timeout=30)
    assert second.returncode == 0, err
    assert out.split()[0] == hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data, record: os.truncate(data, 1000),
        lambda data, record: data.unlink(),
        lambda data, record: data.write_bytes(DATA[::-1]),
        lambda data, record: (data.unlink(), data.symlink_to("/etc/passwd")),
        lambda data, record: record.unlink(),
        lambda data, record: record.write_bytes(record.read_bytes()[:-30]),
        lambda data, record: record.write_text("[]"),
        lambda data, record: record.write_text(record.read_text().replace('"schema": 1', '"schema": 2')),
        lambda data, record: record.write_text(record.read_text().replace(f'"bytes": {len(DATA)}', '"bytes": -1')),
        lambda data, record: record.write_text(record.read_text().replace('"url": "h', '"url": "g')),
        lambda data, record: (record.unlink(), record.mkdir()),
    ],
)
def test_what_is_damaged_is_fetched_again(damage: Any, host: Host, folder: Path) -> None:
    mapped(host.url)
    (data,) = bins(folder)
    data.chmod(0o644)
    damage(data, data.with_suffix(".json"))
    if data.with_suffix(".json").is_dir():
        with pytest.raises(OSError, match="not fetched whole in 3 tries"):
            mapped(host.url)
        return
    assert mapped(host.url).tobytes() == DATA
    assert mapped(host.url).tobytes() == DATA
    assert host.requests.count("GET") == 2


def test_a_copied_cache_is_hashed_and_taken(host: Host, folder: Path) -> None:
    mapped(host.url)
    os.utime(bins(folder)[0], (1, 1))
    assert mapped(host.url).tobytes() == DATA
    assert host.requests.count("GET") == 1


@pytest.mark.parametrize("decompress", [False, True])
def test_another_digest_is_refused(host: Host, folder: Path, decompress: bool) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match=r"(?s)sha256='sha256:0000.*http.*sha256:[0-9a-f]{64}.*correct sha256"):
            mapped(host.url, sha256="0" * 64, decompress=decompress)
        mapped(host.url, decompress=decompress)
    with pytest.raises(UserError, match="sha256='abc' must be 64"):
        mapped(host.url, sha256="abc")


def test_a_pinned_digest_needs_no_host(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    digest = hashlib.sha256(DATA).hexdigest()
    mapped(host.url, sha256=digest)
    asked = len(host.requests)
    host.data, host.tag = DATA[::-1], '"2"'
    assert mapped(host.url, sha256=digest).tobytes() == DATA
    assert len(host.requests) == asked


def test_without_a_network_the_copy_at_hand_is_used(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    mapped(host.url)
    missing = host.url.replace("file", "other")
    with pytest.raises(FileNotFoundError, match="other does not exist"):
        mapped(missing)
    host.gone()
    assert mapped(host.url).tobytes() == DATA
    assert "cannot be reached" in caplog.text
    assert len(caplog.records) == 1
    with pytest.raises(OSError, match="other cannot be read"):
        mapped(missing)


def test_a_file_that_is_gone_from_s3_is_gone(s3: str) -> None:
    url = put(f"{s3}/{uuid.uuid4().hex}", DATA)
    mapped(url)
    fsspec.filesystem("s3").rm(url)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        mapped(url)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        mapped("s3://no-such-bucket-here/x")


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("tag", ['"1"', ""])
def test_a_host_may_tell_neither_length_nor_tag(
    host: Host, length: bool, tag: str, caplog: pytest.LogCaptureFixture
) -> None:
    host.length, host.tag = length, tag
    for _ in range(2):
        assert mapped(host.url).tobytes() == DATA
    assert host.requests.count("GET") == (1 if length else 4), "where there is no length, fsspec asks by GET as well"
    assert ("changes may be missed" in caplog.text) == (not tag)


def test_a_torn_transfer_is_tried_again_and_then_told(host: Host, folder: Path) -> None:
    host.sends = lambda request: DATA[:-7] if request == 1 else DATA
    assert mapped(host.url).tobytes() == DATA
    host.sends, host.tag = lambda request: DATA[:-7], '"2"'
    with pytest.raises(OSError, match="not fetched whole in 3 tries"):
        mapped(host.url)
    assert len(bins(folder)) == 1


def test_the_proxy_of_the_environment_is_taken(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "")
    with ForwardProxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        assert mapped(host.url).tobytes() == DATA
        assert proxy.used


def test_a_file_that_changes_while_it_comes_is_fetched_again(host: Host) -> None:
    def change(request: int) -> bytes:
        host.tag = '"2"'
        return host.data

    host.sends = change
    assert mapped(host.url).tobytes() == DATA
    assert host.requests.count("GET") == 2


def test_gzip_is_undone_wherever_it_lies(tmp_path: Path, host: Host, folder: Path) -> None:
    (tmp_path / "file.gz").write_bytes(gzip.compress(DATA))
    assert mapped(str(tmp_path / "file.gz"), decompress=True).tobytes() == DATA
    assert mapped(str(tmp_path / "file.gz"))[:2].tobytes() == b"\x1f\x8b"
    assert mapped(host.url, decompress=True).tobytes() == DATA, "what is not zipped stays as it is"
    for damaged in (gzip.compress(DATA)[:-9], gzip.compress(DATA)[:-8] + bytes(8), b"\x1f\x8b\x08" + bytes(99)):
        host.data, host.tag = damaged, f'"{len(damaged)}"'
        (tmp_path / "file.gz").write_bytes(damaged)
        for url in (host.url, str(tmp_path / "file.gz")):
            with pytest.raises(ValueError, match=f"{url}: damaged gzip"):
                mapped(url, decompress=True)
    assert not list(folder.glob("*.part"))


def test_storage_that_is_not_installed_is_named() -> None:
    with pytest.raises(UserError, match=r"nosuch://x: .*must be a local path or a URL"):
        mapped("nosuch://x")


def test_the_cache_needs_neither_torch_nor_lightning() -> None:
    ended = command(sys.executable, "-c", "import sys, pipeline.cache; sys.exit('torch' in sys.modules)")
    assert ended.status == 0, ended.text
