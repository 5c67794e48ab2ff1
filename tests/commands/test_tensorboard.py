"""TensorBoard shows the runs of any storage, and what is added while it is open."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.tensorboard import EventCopy
from pipeline.run.run_dir import LOGS, RunDir
from pipeline.training.logs.tensorboard import RunLogger
from tests.support.commands import ROOT, Ended, assert_one_message

App = Callable[..., Ended]


def log_values(url: str, *values: float) -> None:
    """Leave in a run what an attempt logs."""
    logger = RunLogger(RunDir(url), step=0)
    logger.log_hyperparams({"rate": values[0]})
    for step, value in enumerate(values):
        logger.log_metrics({"loss": value}, step)
    logger.finalize("success")
    if logger.mirror is not None:
        logger.mirror.finish(20)


@contextmanager
def shown(url: str, end: signal.Signals = signal.SIGINT) -> Iterator[Callable[..., Any]]:
    """What TensorBoard answers while it is open on a folder; it ends by a signal."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "tensorboard", url, "--port", "0"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    try:
        read = ""
        while (found := re.search(r"http://\S+?:\d+/", read)) is None:
            line = process.stderr.readline()
            assert line, read
            read += line
        address = found[0]

        def ask(path: str, body: Any = None) -> Any:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(f"{address}{path}", data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=20) as answer:
                return json.load(answer)

        yield ask
        process.send_signal(end)
        assert process.wait(20) == 0
        assert address_is_free(address), "TensorBoard itself has ended as well"
    finally:
        end_group(process)


def address_is_free(address: str) -> bool:
    """Whether nobody listens there any more."""
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return True
    return False


def end_group(process: subprocess.Popen[str]) -> None:
    """End whatever is left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)


def until(ask: Callable[[], Any], wanted: Any) -> None:
    """Ask until the answer is what is wanted."""
    deadline = time.monotonic() + 40
    while (got := ask()) != wanted:
        assert time.monotonic() < deadline, got
        time.sleep(0.5)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", [pytest.param("folder", marks=pytest.mark.slow), "s3"])
def test_all_runs_of_a_folder_are_shown_and_what_is_added_meanwhile(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root = str(tmp_path) if kind == "folder" else f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex[:12]}"
    log_values(f"{root}/one", 1.0, 0.5)
    log_values(f"{root}/two", 2.0)

    with shown(root, signal.SIGINT if kind == "folder" else signal.SIGTERM) as ask:

        def tags() -> Any:
            return {name: list(each) for name, each in ask("data/plugin/scalars/tags").items()}

        def values(run: str) -> list[tuple[int, float]]:
            found = ask(f"data/plugin/scalars/scalars?run={run}%2Flogs&tag=loss")
            return [(step, value) for _, step, value in found]

        until(tags, {"one/logs": ["loss"], "two/logs": ["loss"]})
        assert values("one") == [(0, 1.0), (1, 0.5)]
        assert values("two") == [(0, 2.0)]
        body = {
            "allowedStatuses": ["STATUS_SUCCESS"],
            "colParams": [{"hparam": "rate"}],
            "startIndex": 0,
            "sliceSize": 9,
        }
        groups = ask("data/plugin/hparams/session_groups", body)["sessionGroups"]
        found = {group["name"]: (group["hparams"]["rate"], group["metricValues"][0]["value"]) for group in groups}
        assert found == {"one/logs": (1.0, 0.5), "two/logs": (2.0, 2.0)}, "one row a run, with its last values"
        time.sleep(1)  # the next events file has a name of its own, which begins with the second
        log_values(f"{root}/one", 8.0, 4.0, 2.0)
        until(lambda: values("one"), [(0, 8.0), (1, 4.0), (2, 2.0)])


def test_a_bucket_is_shown_from_its_root(s3: str, tmp_path: Path) -> None:
    name = uuid.uuid4().hex[:12]
    log_values(f"{s3}/{name}", 1.0)
    run = RunDir(f"{s3}/{name}")
    copy = EventCopy(run.fs, s3.removeprefix("s3://"), s3, tmp_path)
    assert copy.refresh() >= 1
    assert [path.parent.relative_to(tmp_path) for path in tmp_path.glob(f"{name}/**/events.*")] == [Path(name, LOGS)]


def test_of_a_file_that_has_grown_only_the_rest_is_read(other_storage: str, tmp_path: Path) -> None:
    run = RunDir(other_storage)
    name = f"{LOGS}/events.out.tfevents.1"
    run.write(name, b"first")
    run.write(f"{LOGS}/other.txt", b"not TensorBoard's")
    copy = EventCopy(run.fs, run.path, "here", tmp_path)
    assert copy.refresh() == 1
    inode = (tmp_path / name).stat().st_ino
    run.write(name, b"first, second")
    assert copy.refresh() == 1
    assert (tmp_path / name).read_bytes() == b"first, second"
    assert (tmp_path / name).stat().st_ino == inode, "TensorBoard, which has it open, reads on"
    assert not (tmp_path / LOGS / "other.txt").exists()


def test_an_outage_is_one_warning_and_the_copy_goes_on(
    other_storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(other_storage)
    run.write(f"{LOGS}/events.out.tfevents.1", b"x")
    copy, tries = EventCopy(run.fs, run.path, "here", tmp_path), []
    real = copy.refresh

    def refresh() -> int:
        tries.append(1)
        if len(tries) < 4:
            raise ConnectionError("away")
        copy.stop()
        return real()

    monkeypatch.setattr(copy, "refresh", refresh)
    monkeypatch.setattr("pipeline.commands.tensorboard._SECONDS_BETWEEN_COPIES", 0.01)
    copy.keep_fresh()
    assert caplog.text.count("here cannot be read, trying again: ") == 1
    assert (tmp_path / LOGS / "events.out.tfevents.1").exists()


def test_a_name_that_leads_out_of_the_folder_is_left_out(tmp_path: Path) -> None:
    class Odd:
        def find(self, path: str, detail: bool) -> Any:
            return {f"{path}/../../events.out.tfevents.1": {"size": 1}}

        def cat_file(self, name: str, start: int, end: int) -> bytes:
            return b"x"

    folder = tmp_path / "deep" / "er"
    EventCopy(Odd(), "bucket", "here", folder).refresh()
    assert not list(tmp_path.rglob("events.*"))


def test_a_folder_that_is_not_there_is_one_message(app: App, tmp_path: Path) -> None:
    assert_one_message(app("tensorboard", f"{tmp_path}/none"), "is no folder")
