"""A store that cannot carry a run is found out before a node is paid for."""

import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.checkpoint.cleanup import open_uploads
from pipeline.commands import probe as module
from pipeline.commands.probe import probe
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir
from tests.support.commands import ROOT, command

CHECKS = ["write", "read after write", "list", "ranged read", "up", "down", "multipart abort", "conditional put"]


def verdicts(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line.startswith(("ok ", "MISSING ", "FAILED "))]
    return {line[8:26].strip(): line.split()[0] for line in lines}


def what_is_left(url: str) -> list[str]:
    fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return list(fs.find(path)) if fs.exists(path) else []


def test_a_good_store_passes_all_checks_and_nothing_is_left(storage: str) -> None:
    text, good = probe(storage, megabytes=40)
    assert good, text
    found = verdicts(text)
    assert list(found) == [*CHECKS, "delete"]
    # moto decides on a condition and writes in two steps, so more than one may succeed there.
    assert {verdict for name, verdict in found.items() if name != "conditional put"} == {"ok"}, text
    assert "MB/s" in text
    assert what_is_left(storage) == []
    run = RunDir(storage)
    if storage.startswith("s3"):
        assert list(open_uploads(run, "")) == []
    if run.is_local:
        assert not Path(storage).exists(), "a folder that was not there before is not there after"


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    assert probe(str(tmp_path), megabytes=1)[1]
    assert os.listdir(tmp_path) == ["mine"]


def test_a_read_only_folder_fails_with_words() -> None:
    # Not even root may make a folder there.
    text, good = probe("/sys/pipeline-probe", megabytes=1)
    assert not good
    assert verdicts(text) == {"write": "FAILED"}
    assert "may not" in text or "read-only" in text
    assert "the checks after it were not tried" in text


def test_a_missing_bucket_is_named(s3: str) -> None:
    text, good = probe("s3://no-such-bucket-of-ours/run", megabytes=1)
    assert not good
    assert verdicts(text) == {"write": "FAILED"}
    assert "the bucket does not exist. Create it" in text


def test_a_full_store_fails_and_what_was_written_is_removed(tmp_path: Path) -> None:
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, resource.RLIM_INFINITY));"
        "from pipeline.commands.probe import probe; text, good = probe(sys.argv[1], 8); print(text);"
        "sys.exit(0 if good else 2)"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    ended = command(sys.executable, "-c", program, tmp_path / "store", cwd=ROOT)
    assert ended.status == 2, ended.text
    found = verdicts(ended.out)
    assert found["up"] == found["down"] == "FAILED"
    assert found["write"] == found["delete"] == "ok"
    assert "the store is full, or a quota or limit is reached" in ended.out
    assert os.listdir(tmp_path) == []


class Odd:
    """A filesystem of which one method does something else."""

    def __init__(self, fs: Any, **methods: Any) -> None:
        self._fs, self._methods = fs, methods

    def __getattr__(self, name: str) -> Any:
        return self._methods[name] if name in self._methods else getattr(self._fs, name)


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(**methods: Any) -> None:
        class OddRun(RunDir):
            def __init__(self, url: str) -> None:
                super().__init__(url)
                self.fs = Odd(self.fs, **{name: method(self.fs) for name, method in methods.items()})

        monkeypatch.setattr(module, "RunDir", OddRun)

    return make


def test_a_store_that_lists_late_fails(odd: Any, other_storage: str) -> None:
    asked: list[int] = []

    def late(fs: Any) -> Any:
        return lambda *args, **kwargs: [] if len(asked) < 1 and not asked.append(1) else fs.ls(*args, **kwargs)

    odd(ls=late)
    text, good = probe(other_storage, megabytes=1)
    assert not good
    assert verdicts(text)["list"] == "FAILED"
    assert "consistent listings" in text
    assert what_is_left(other_storage) == []


def test_a_store_that_does_not_delete_fails_and_says_what_is_left(odd: Any, other_storage: str) -> None:
    def deny(fs: Any) -> Any:
        def rm_file(path: str) -> None:
            raise PermissionError("Access Denied")

        return rm_file

    odd(rm_file=deny)
    text, good = probe(other_storage, megabytes=1)
    assert not good
    assert verdicts(text)["delete"] == verdicts(text)["clean up"] == "FAILED"
    assert "remove it by hand" in text


def test_a_store_that_never_answers_fails_in_time(odd: Any, other_storage: str) -> None:
    answer = threading.Event()

    def hang(name: str) -> Any:
        return lambda fs: lambda *args, **kwargs: answer.wait(60) and getattr(fs, name)(*args, **kwargs)

    odd(**{name: hang(name) for name in ("open", "cat_file", "pipe_file")})
    began = time.monotonic()
    text, good = probe(other_storage, megabytes=1, limit=0.3)
    assert time.monotonic() - began < 30, "it does not wait for what wakes up after a minute"
    answer.set()
    assert not good
    assert "no answer within" in text
    assert f"should the store wake up later, remove {other_storage}/probe-" in text
    assert verdicts(text) == {"write": "FAILED"}


def test_a_store_without_listing_of_uploads_is_usable_and_says_how_to_mend_it(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(run: RunDir, beginning: str) -> Any:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(module, "open_uploads", denied)
    text, good = probe(f"{s3}/probe-denied", megabytes=1)
    assert good, text
    assert verdicts(text)["multipart abort"] == "MISSING"
    assert "lifecycle rule" in text
    monkeypatch.undo()
    assert list(open_uploads(RunDir(f"{s3}/probe-denied"), "")) == []


def test_a_store_where_all_rivals_succeed_lacks_the_conditional_put(s3: str, odd: Any) -> None:
    odd(pipe_file=lambda fs: lambda path, value, mode="": fs.pipe_file(path, value))
    text, good = probe(f"{s3}/probe-unconditional", megabytes=1)
    assert good, text
    assert verdicts(text)["conditional put"] == "MISSING"
    assert "8 of 8 created the same file" in text


def test_nothing_to_measure_is_the_user_s_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="megabytes=0"):
        probe(str(tmp_path), megabytes=0)
    with pytest.raises(UserError, match="run_dir='nope://x'"):
        probe("nope://x")
