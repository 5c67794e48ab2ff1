"""What one process of a node has found out, the others take from the cache."""

from pathlib import Path

import pytest

from pipeline.formats.node_cache import kept, this_start


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_it_is_found_out_once_for_each_version(folder: Path) -> None:
    made: list[bytes] = []

    def make() -> bytes:
        made.append(b"%d" % len(made))
        return made[-1]

    assert [kept("x", "one", make) for _ in range(2)] == [b"0", b"0"]
    assert [kept("x", "two", make), kept("y", "one", make)] == [b"1", b"2"]
    assert len(list(folder.glob("*.bin"))) == 2, "what was known of an older version is gone"
    assert kept("x", "", make) == b"3", "without a version nothing is known of it"
    assert [kept("x", "", make), kept("x", "two", make)] == [b"4", b"1"]


def test_a_torn_copy_is_found_out_again(folder: Path) -> None:
    assert kept("x", "one", lambda: b"whole") == b"whole"
    (path,) = folder.glob("*.bin")
    path.chmod(0o644)
    path.write_bytes(b"tor")
    assert kept("x", "one", lambda: b"again") == b"again"


def test_only_processes_that_were_started_together_share_a_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert this_start() == ""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    first = this_start()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "3")
    assert first
    assert this_start() != first
