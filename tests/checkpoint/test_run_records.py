"""What the records of runs say together, on every storage; a damaged one harms no other."""

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint.commit import Monitor, select
from pipeline.checkpoint.run_records import sketched, summarize
from pipeline.checkpoint.run_summary import RunCondition, RunSummary
from pipeline.run.run_dir import LEASE, NEWEST, RECEIPT, RunDir
from pipeline.run.run_listing import RunListing, RunTree
from pipeline.run.s3_listing import S3Folder
from tests.support.commands import ROOT, Ended
from tests.support.recorded import attempt, lease, recorded
from tests.support.runs import fit

App = Callable[..., Ended]


def only(url: str) -> RunSummary:
    (found,) = summarize(url)
    return found


def test_a_run_is_what_all_its_records_say_together(storage: str) -> None:
    run = recorded(storage, attempt(1, 75), attempt(2, 0, reached_step=7))
    run.write("logs/events", b"x" * 100)
    run.write_json(RECEIPT, {"metrics": {"test_loss": 0.25}})
    found = only(storage)
    assert (found.url, found.label, found.state, found.status) == (run.url, run.label, RunCondition.FINISHED, 0)
    assert (found.attempts, found.step, found.committed_step, found.checkpoints) == (2, 7, 4, 2)
    assert (found.epoch, found.max_epochs, found.max_steps) == (1, 20, None)
    assert (found.best, found.best_step) == (Monitor("val_loss", 0.25, "min"), 2)
    assert found.started is not None
    assert found.started.isoformat() == "2026-11-24T12:10:00+00:00"
    assert found.updated is not None
    # 90 of 660 seconds: two minutes, and nine between them.
    assert found.goodput == pytest.approx(90 / 660)
    assert found.bytes == sum(run.fs.du(run.path, total=False).values())
    assert found.config["model.learning_rate"] == 0.1
    assert found.metrics == {"test_loss": 0.25}
    assert found.problems == ()


@pytest.mark.parametrize(
    ("status", "state"),
    [(0, "finished"), (75, "preempted"), (130, "interrupted"), (2, "failed"), (1, "failed"), (-9, "failed")],
)
def test_the_newest_attempt_says_how_a_run_stands(tmp_path: Path, status: int, state: str) -> None:
    recorded(str(tmp_path), attempt(1, 0), attempt(2, status))
    found = only(str(tmp_path))
    assert (found.state, found.status) == (state, status)


def test_a_lease_that_is_renewed_says_that_a_run_is_running(storage: str) -> None:
    run = recorded(storage, attempt(1, None))
    lease(run, reached_step=9)
    found = only(storage)
    assert (found.state, found.status, found.step) == (RunCondition.RUNNING, None, 9)
    assert found.goodput == 0.5, "the lease knows how the attempt has done so far"
    lease(run, seconds=0)
    assert (only(storage).state, only(storage).step) == (RunCondition.LOST, 4)
    run.remove(LEASE)
    assert only(storage).state is RunCondition.LOST, "nothing says that it ended"


def test_a_lease_expires_by_the_clock_of_the_disk(tmp_path: Path) -> None:
    run = recorded(str(tmp_path), attempt(1, None))
    lease(run)
    os.utime(tmp_path / LEASE, (time.time() - 59,) * 2)
    assert only(str(tmp_path)).state is RunCondition.RUNNING
    os.utime(tmp_path / LEASE, (time.time() - 61,) * 2)
    assert only(str(tmp_path)).state is RunCondition.LOST


def test_the_lease_of_a_process_that_is_known_to_be_dead_counts_for_nothing(tmp_path: Path) -> None:
    from pipeline.run.lease import _process

    run = recorded(str(tmp_path), attempt(1, None))
    own = {"host": os.uname().nodename, "pid": os.getpid(), "process": _process(os.getpid())}
    lease(run, **own)
    assert only(str(tmp_path)).state is RunCondition.RUNNING
    lease(run, **{**own, "process": {**own["process"], "started": "1"}})
    assert only(str(tmp_path)).state is RunCondition.LOST


def test_an_attempt_that_has_ended_is_not_running_while_its_lease_is_left(tmp_path: Path) -> None:
    lease(recorded(str(tmp_path), attempt(1, 75)), attempt=1)
    assert only(str(tmp_path)).state is RunCondition.PREEMPTED
    lease(RunDir(str(tmp_path)), attempt=2)
    assert only(str(tmp_path)).state is RunCondition.RUNNING, "the next one has just begun"


def test_one_that_a_later_start_has_declared_dead_is_lost(tmp_path: Path) -> None:
    recorded(str(tmp_path), attempt(1, None, ended="2026-11-24T12:11:00.000Z", reason="vanished: last heard of"))
    assert only(str(tmp_path)).state is RunCondition.LOST


def test_runs_are_found_at_any_depth_also_within_a_run(storage: str) -> None:
    names = ("a", "group/b", "group/deep/er/c", "group/b/nested")
    for name in names:
        recorded(f"{storage}/{name}", attempt())
    RunDir(storage).write("notes/readme.txt", b"no run")
    found = summarize(storage)
    assert [run.label for run in found] == sorted(f"{RunDir(storage).label}/{name}" for name in names)
    assert {run.bytes for run in found} == {found[0].bytes}, "what lies in the nested one is not counted twice"
    assert [run.label for run in summarize(f"{storage}/group/deep/er/c/")] == [f"{RunDir(storage).label}/{names[2]}"]


def test_a_run_on_a_storage_without_a_clock(other_storage: str) -> None:
    run = recorded(other_storage, attempt(1, None))
    lease(run)
    assert only(other_storage).state is RunCondition.LOST, "it says itself when it was renewed"


@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff\xfe", b"[]", b'{"schema": 7}', b'{"schema": 1}'])
@pytest.mark.parametrize("name", ["attempts/0001.json", "checkpoints/step-00000002.json", "lease.json", RECEIPT])
def test_a_damaged_record_is_named_and_harms_no_other_run(tmp_path: Path, name: str, content: bytes) -> None:
    for each in ("bad", "good"):
        recorded(f"{tmp_path}/{each}", attempt())
    (tmp_path / "bad" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "bad" / name).write_bytes(content)
    bad, good = summarize(str(tmp_path))
    assert (good.state, good.problems) == (RunCondition.FINISHED, ())
    if name == "lease.json":
        assert bad.state is RunCondition.RUNNING, "it is torn while it is being created"
    elif content != b'{"schema": 1}' or name.startswith("checkpoints"):
        assert [problem for problem in bad.problems if name in problem]
    assert bad.state is (RunCondition.UNKNOWN if name.startswith("attempts") and bad.problems else bad.state)


WRONG: tuple[Any, ...] = (None, True, -1, 1e400, "x", [], {}, {"seconds": 7}, "2026-11-24T12:10:00")


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_whatever_a_field_holds_a_run_is_shown(tmp_path: Path, value: Any) -> None:
    import json

    recorded(str(tmp_path), attempt())
    lease(RunDir(str(tmp_path)))
    for name in ("attempts/0001.json", "checkpoints/step-00000004.json", LEASE):
        whole = json.loads((tmp_path / name).read_text())
        for key in whole.keys() - {"schema"}:
            (tmp_path / name).write_text(json.dumps({**whole, key: value}))
            assert only(str(tmp_path)).attempts == 1
        (tmp_path / name).write_text(json.dumps(whole))
    (tmp_path / "fit.yaml").write_text(json.dumps({"trainer": {"max_steps": value}, "model": value}))
    assert only(str(tmp_path)).attempts == 1


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [", b"[]", b"a: 2020-99-99\n", b"- a", b""])
def test_a_damaged_configuration_is_named(tmp_path: Path, content: bytes) -> None:
    recorded(str(tmp_path), attempt())
    (tmp_path / "fit.yaml").write_bytes(content)
    found = only(str(tmp_path))
    assert found.config == {}
    assert len(found.problems) == 1
    assert found.problems[0].startswith("fit.yaml ")
    assert found.best is not None


def test_the_checkpoint_whose_bytes_are_missing_is_named_and_is_not_the_best(tmp_path: Path) -> None:
    recorded(str(tmp_path), attempt())
    (tmp_path / RunDir.checkpoint(2)).unlink()
    found = only(str(tmp_path))
    assert (found.best_step, found.checkpoints) == (4, 1)
    assert "step-00000002.ckpt" in found.problems[0]


KNOWN: dict[str, Any] = {
    "commits": {"through": 4, "epoch": 1, "best": {"name": "val_loss", "value": 0.25, "mode": "min", "step": 2}},
    "earlier": {"started": "2026-11-24T12:00:00.000Z", "useful": 5.0, "seconds": 10.0, "ended": 0.0},
    "config": {"trainer.max_epochs": 20},
    "stored": {"checkpoints": 2, "bytes": 6},
}
SMALL = ("--checkpoints.monitor=val_loss", "--checkpoints.every_n_steps=2")


def test_the_newest_attempt_alone_says_what_all_records_say(
    app: App, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for epochs in (1, 2):
        assert fit(app, storage, epochs, *SMALL, "--model.learning_rate=0.01").status == 0
    run = RunDir(storage)
    read: list[str] = []
    real = RunTree.read

    def watched(self: RunTree, wanted: Iterable[tuple[RunListing, str]]) -> Any:
        pairs = list(wanted)
        read.extend(name for _, name in pairs)
        return real(self, pairs)

    monkeypatch.setattr(RunTree, "read", watched)
    quick = only(storage)
    assert read == ["attempts/0002.json"]
    newest = run.read_json(RunDir.attempt(2)) or {}
    run.write_json(RunDir.attempt(2), {key: newest[key] for key in newest.keys() - {"earlier", "commits", "config"}})
    slow = only(storage)
    assert len(read) > 10
    assert slow == replace(quick, bytes=slow.bytes, updated=slow.updated, goodput=slow.goodput)
    assert slow.goodput == pytest.approx(quick.goodput)
    best = select(run, "best")
    assert (quick.best, quick.best_step) == (best.monitor, best.step)
    assert (quick.state, quick.attempts, quick.epoch, quick.step) == (RunCondition.FINISHED, 2, 2, 14)
    assert quick.config["model.learning_rate"] == 0.01


def test_a_list_of_runs_on_s3_lists_the_files_of_none_that_says_how_it_stands(
    app: App, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{s3}/{uuid.uuid4().hex[:12]}"
    assert fit(app, f"{url}/trained", 1, *SMALL).status == 0
    for name, ended in (("running", None), ("killed", None), ("gone", None), ("done", 0)):
        run = recorded(f"{url}/{name}", attempt(3, ended, **KNOWN))
        run.write_json(NEWEST, attempt(3, ended, **KNOWN))
        if name in ("running", "killed"):
            lease(run, attempt=3, seconds=60 if name == "running" else 0, reached_step=9)
    recorded(f"{url}/group/old", attempt())
    RunDir(url).write("notes/x", b"x")
    listed: list[str] = []
    real = S3Folder.files
    monkeypatch.setattr(S3Folder, "files", lambda self, folder="": listed.append(folder) or real(self, folder))
    quick = sketched(RunTree(url))
    assert listed == ["group", "notes"]
    whole = summarize(url)
    assert [run.state for run in quick] == ["finished", "lost", "finished", "lost", "running", "finished"]
    for one, other in zip(quick, whole, strict=True):
        assert one == replace(other, bytes=one.bytes, updated=one.updated, problems=one.problems)
        assert (one.bytes < other.bytes) == (not one.label.endswith("old")), "of the checkpoints alone"
    assert quick[-1].metrics is None
    (found,) = sketched(RunTree(f"{url}/trained"))
    assert found == summarize(f"{url}/trained")[0], "a run itself is looked at closely"


def test_many_runs_that_do_not_say_how_they_stand_are_listed_at_once(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{s3}/{uuid.uuid4().hex[:12]}"
    for number in range(18):
        RunDir(f"{url}/{number:02}").write("fit.yaml", b"a: 1")
    RunDir(f"{url}/00").write_json(NEWEST, attempt())
    listed: list[str] = []
    real = S3Folder.files
    monkeypatch.setattr(S3Folder, "files", lambda self, folder="": listed.append(folder) or real(self, folder))
    assert len(sketched(RunTree(url))) == 18
    assert listed == [""]


def test_what_was_committed_after_the_newest_attempt_has_said_so_is_read(tmp_path: Path) -> None:
    known = {"through": 2, "epoch": 0, "best": {"name": "val_loss", "value": 0.75, "mode": "min", "step": 2}}
    recorded(str(tmp_path), attempt(1, None, commits=known))
    found = only(str(tmp_path))
    assert (found.best, found.best_step, found.epoch) == (Monitor("val_loss", 0.5, "min"), 4, 1)
    lease(RunDir(str(tmp_path)), commits={**known, "through": 4})
    assert only(str(tmp_path)).best_step == 2, "the lease knows more than the record"


def test_where_the_best_checkpoint_is_gone_the_best_of_those_that_are_left_is_named(tmp_path: Path) -> None:
    known = {"through": 4, "epoch": 0, "best": {"name": "val_loss", "value": 0.1, "mode": "min", "step": 3}}
    recorded(str(tmp_path), attempt(1, 0, commits=known))
    assert only(str(tmp_path)).best_step == 2


def test_a_run_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests/golden/run", tmp_path / "run")
    found = only(str(tmp_path))
    assert (found.state, found.step, found.best_step, found.problems) == (RunCondition.FINISHED, 50, 50, ())
