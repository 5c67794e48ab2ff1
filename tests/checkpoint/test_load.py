"""A start goes on only from bytes that match their commit record, fetched once a node, and says what it passes over."""

import hashlib
import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cache import folder
from pipeline.checkpoint import load as loading
from pipeline.checkpoint.commit import CommitRecord, Monitor, read_record, write_record
from pipeline.checkpoint.load import Corrupt, check, fetch_verified, load, newest_verified, select_verified
from pipeline.config.resume_point import for_training
from pipeline.errors import UserError
from pipeline.run.run_dir import RECEIPT, RunDir
from pipeline.training.checkpoint_io import RunIO
from tests.support.commands import ROOT, Ended
from tests.support.resumes import equal, state
from tests.support.runs import fit, of_attempts

App = Callable[..., Ended]
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "zip header": lambda data: flipped(data, 1),
    "pickle": lambda data: flipped(data, data.index(b"data.pkl") + 200),
    "tensor": lambda data: flipped(data, data.index(b"/data/0") + 70),
    "central directory": lambda data: flipped(data, len(data) - 30),
    "truncated": lambda data: data[:-1],
    "appended": lambda data: data + b"\0",
    "empty": lambda data: b"",
    "missing": lambda data: None,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of each test's own."""
    monkeypatch.setenv("PIPELINE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], Any]:
    """The files of a run that stands at step 14 of 21, and the weights of one that never stopped."""
    from pipeline.cli import main

    base = tmp_path_factory.mktemp("trained")
    for name, epochs in (("stopped", 2), ("straight", 3)):
        arguments = f"""fit --model tests.support.models.Regression --data pipeline.data.DataModule
            --data.train tests.support.models.Rows --data.val tests.support.models.Rows
            --data.batch_size=16 --trainer.enable_model_summary=false
            --run_dir {base / name} --trainer.max_epochs={epochs} --checkpoints.monitor=val_loss"""
        assert main(arguments.split()) == 0
    files = [path for path in (base / "stopped").rglob("*") if path.is_file() and "logs" not in path.parts]
    straight = state(str(base / "straight"))["state_dict"]
    return {str(path.relative_to(base / "stopped")): path.read_bytes() for path in files}, straight


def placed(url: str, files: dict[str, bytes]) -> RunDir:
    """A run of these files."""
    run = RunDir(url)
    for name, data in files.items():
        run.write(name, data)
    return run


def damage(run: RunDir, step: int, kind: str) -> None:
    name = RunDir.checkpoint(step)
    data = run.read(name)
    assert data is not None
    changed = DAMAGES[kind](data)
    run.remove(name)
    if changed is not None:
        run.write(name, changed)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def commit(run: RunDir, step: int, value: Any = None, monitored: float | None = None) -> CommitRecord:
    """A small checkpoint, committed."""
    file = io.BytesIO()
    torch.save({"step": step, "value": torch.arange(1000) + step if value is None else value}, file)
    data = file.getvalue()
    monitor = None if monitored is None else Monitor("val_loss", monitored, "min")
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    record = CommitRecord(step, 0, 0, len(data), digest, monitor, 1, "", ["steps"])
    run.write(record.name, data)
    write_record(run, record)
    return record


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_newest_is_passed_over_with_words_and_the_end_is_the_same(
    app: App, storage: str, trained: tuple[dict[str, bytes], Any], kind: str
) -> None:
    files, straight = trained
    damage(placed(storage, files), 14, kind)
    ended = fit(app, storage, 3, "--checkpoints.monitor=val_loss")
    assert ended.status == 0, ended.err
    found = {
        "truncated": r"has \d+ bytes",
        "appended": r"has \d+ bytes",
        "empty": "has 0 bytes",
        "missing": "is missing",
    }
    words = r"its bytes have sha256:[0-9a-f]{64}, its record says sha256:[0-9a-f]{64}"
    if kind in found:
        words = rf"its file {found[kind]}, its record says \d+ bytes"
    assert re.search(f"skipping checkpoint step 14: {words}", ended.err), ended.err
    assert "resumed at step 7 from" in ended.err
    assert equal(state(storage)["state_dict"], straight)


def test_without_a_good_commit_it_stops_with_2_and_leaves_all_as_it_is(
    app: App, storage: str, trained: tuple[dict[str, bytes], Any]
) -> None:
    run = placed(storage, trained[0])
    damage(run, 14, "tensor")
    damage(run, 7, "pickle")

    def lies() -> dict[str, bytes]:
        return {path: run.fs.cat_file(path) for path in run.fs.find(run.path) if not of_attempts(path)}

    before = lies()
    ended = fit(app, storage, 3, "--checkpoints.monitor=val_loss")
    assert ended.status == 2
    assert re.search("(?s)skipping checkpoint step 14: .*skipping checkpoint step 7: ", ended.err)
    assert "has commit records but no good checkpoint" in ended.err
    assert lies() == before


def test_evaluation_takes_the_next_best_and_never_a_damaged_one(
    app: App, storage: str, trained: tuple[dict[str, bytes], Any]
) -> None:
    run = placed(storage, trained[0])
    damage(run, 14, "tensor")
    test = ("test", "--run_dir", storage, "--data.test=tests.support.models.Rows")
    ended = app(*test)
    assert ended.status == 0, ended.err
    assert "skipping checkpoint step 14: its bytes have sha256:" in ended.err
    assert (run.read_json(RECEIPT) or {})["checkpoint"].endswith("step-00000007.ckpt")
    ended = app(*test, "--checkpoint=14")
    assert ended.status == 2
    assert "checkpoint=14 is damaged: its bytes have sha256:" in ended.err
    damage(run, 7, "tensor")
    ended = app(*test, "--checkpoint=best")
    assert ended.status == 2
    assert "no good checkpoint" in ended.err


def test_verify_hashes_every_checkpoint_and_exits_with_1_where_one_fails(
    app: App, storage: str, trained: tuple[dict[str, bytes], Any]
) -> None:
    run = placed(storage, trained[0])
    run.write(RunDir.checkpoint(15), b"torn")
    ended = app("verify", "--run_dir", storage)
    assert ended.status == 0, ended.text
    lines = ended.out.splitlines()
    assert lines[0] == "step 15  not committed: it has no commit record: its save did not finish"
    assert re.fullmatch(r"step 14  \d+ bytes  ok\nstep 7  \d+ bytes  ok", "\n".join(lines[1:3]))
    assert "every sample is accounted for" in ended.out
    damage(run, 7, "tensor")
    ended = app("verify", "--run_dir", storage)
    assert ended.status == 1
    assert re.search(r"step 7  \d+ bytes  FAILED: its bytes have sha256:", ended.out)
    assert "ledger of" in ended.out
    assert "at step 14" in ended.out
    assert ended.out.rstrip().endswith("FAILED: the checkpoint of step 7 is damaged")
    damage(run, 14, "missing")
    ended = app("verify", "--run_dir", storage)
    assert ended.status == 1
    assert "step 14  FAILED: its file is missing" in ended.out
    assert "there is no ledger to judge" in ended.out


def test_a_decision_without_comparing_reads_no_checkpoint(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(storage)
    commit(run, 1)
    monkeypatch.setattr(loading, "_held", None)
    assert for_training(run, {"model": None}, None, verify=False).step == 1


def test_what_is_loaded_is_mapped_and_outlasts_its_file(storage: str, cache: Path) -> None:
    run = RunDir(storage)
    record = commit(run, 3)
    checkpoint = RunIO(run).load_checkpoint(run.url_of(record.name))
    path = fetch_verified(run, record)
    assert run.is_local == (path.parent != cache)
    assert os.stat(path).st_size == record.bytes
    assert str(path) in Path("/proc/self/maps").read_text()
    path.unlink()
    assert torch.equal(checkpoint["value"], torch.arange(1000) + 3)
    checkpoint["value"] += 1
    if not run.is_local:
        assert torch.equal(load(run, record)["value"], torch.arange(1000) + 3), "fetched again, and never written to"


def test_parameters_are_copied_out_of_the_mapping(storage: str) -> None:
    run = RunDir(storage)
    model = torch.nn.Linear(64, 64)
    record = commit(run, 1, dict(model.state_dict()))
    path = fetch_verified(run, record)
    model.load_state_dict(load(run, record)["value"])
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_a_damage_after_this_node_has_verified_it_is_found_by_the_next_start(storage: str) -> None:
    run = RunDir(storage)
    commit(run, 1)
    record = commit(run, 2)
    assert newest_verified(run) == (record, fetch_verified(run, record))
    load(run, record)
    damage(run, 2, "tensor")
    good = newest_verified(run)
    assert good is not None
    assert good[0].step == 1
    with pytest.raises(Corrupt, match="its bytes have"):
        check(run, record)


def test_a_copy_that_somebody_wrote_to_is_fetched_again(other_storage: str) -> None:
    run = RunDir(other_storage)
    record = commit(run, 2)
    path = fetch_verified(run, record)
    path.chmod(0o644)
    path.write_bytes(flipped(path.read_bytes(), 500))
    assert f"sha256:{hashlib.sha256(fetch_verified(run, record).read_bytes()).hexdigest()}" == record.sha256


def test_a_copy_from_before_the_machine_went_down_is_hashed_first(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(storage)
    record = commit(run, 2)
    path = fetch_verified(run, record)
    monkeypatch.setattr(folder, "_boot", lambda: "another")
    hashed: list[Path] = []
    original = hashlib.file_digest
    monkeypatch.setattr(
        hashlib,
        "file_digest",
        lambda file, name: [hashed.append(Path(f"/proc/self/fd/{file.fileno()}").resolve()), original(file, name)][1],
    )
    monkeypatch.setattr(loading, "_stream", None)
    assert fetch_verified(run, record) == path
    assert hashed == ([] if run.is_local else [path])


def test_a_storage_that_fails_is_no_damage(other_storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(other_storage)
    commit(run, 1)
    commit(run, 2)

    def fails(start: int, end: int) -> bytes:
        raise ConnectionError("unplugged")

    monkeypatch.setattr(loading, "open_ranges", lambda *_: fails)
    with pytest.raises(ConnectionError, match="unplugged"):
        newest_verified(run)


def test_the_best_good_one_is_chosen_by_value_and_then_by_age(storage: str) -> None:
    run = RunDir(storage)
    for step, value in ((1, 0.3), (2, 0.1), (3, 0.2), (4, 0.2)):
        commit(run, step, monitored=value)
    assert select_verified(run, None)[0].step == 2
    damage(run, 2, "tensor")
    assert select_verified(run, "best")[0].step == 4
    damage(run, 4, "tensor")
    assert [select_verified(run, which)[0].step for which in ("best", "latest", "1")] == [3, 3, 1]
    with pytest.raises(UserError, match=r"checkpoint=4 is damaged"):
        select_verified(run, "4")


def _fetch(url: str, counts: Any, start: Any) -> None:
    run = RunDir(url)
    record = read_record(run, 1)
    assert record is not None
    open_ranges, hash_file = loading.open_ranges, loading._hash_file

    def counting(*given: Any) -> Any:
        read = open_ranges(*given)

        def ranged(first: int, end: int) -> Any:
            data = read(first, end)
            with counts.get_lock():
                counts.value += len(memoryview(data))
            return data

        return ranged

    def hashing(path: Path, of: CommitRecord) -> None:
        with counts.get_lock():
            counts.value += of.bytes
        hash_file(path, of)

    loading.open_ranges, loading._hash_file = counting, hashing
    start.wait()
    assert torch.equal(RunIO(run).load_checkpoint(run.url_of(record.name))["value"], torch.arange(5_000_000))


def test_the_processes_of_a_node_fetch_a_checkpoint_once(s3: str, tmp_path: Path) -> None:
    for url in (str(tmp_path / "run"), f"{s3}/{tmp_path.name}-{os.getpid()}/run"):
        run = RunDir(url)
        record = commit(run, 1, torch.arange(5_000_000))
        context = multiprocessing.get_context("spawn")
        counts, start = context.Value("q", 0), context.Barrier(2)
        processes = [context.Process(target=_fetch, args=(url, counts, start)) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0]
        assert counts.value == record.bytes


def test_killed_in_the_middle_of_a_download_leaves_nothing_that_counts(s3: str, tmp_path: Path, cache: Path) -> None:
    run = RunDir(f"{s3}/{tmp_path.name}-{os.getpid()}/killed")
    record = commit(run, 1, torch.arange(10_000_000))
    program = f"""
        import time
        from pipeline.checkpoint import load
        from pipeline.checkpoint.commit import read_record
        from pipeline.run.run_dir import RunDir
        original = load.open_ranges
        def slow(*given):
            read = original(*given)
            return lambda start, end: read(start, end) if start < (32 << 20) else time.sleep(60)
        load.open_ranges = slow
        run = RunDir({run.url!r})
        load.fetch_verified(run, read_record(run, 1))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT)
    limit = time.monotonic() + 60
    while time.monotonic() < limit and not any(path.stat().st_blocks > 1000 for path in cache.glob("*.part")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.suffix for path in sorted(cache.iterdir())] == [".part", ".lock"]
    path = fetch_verified(run, record)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in record.sha256
    assert not list(cache.glob("*.part"))


@pytest.mark.parametrize("remote", [False, True])
def test_a_large_checkpoint_is_verified_in_bounded_memory(tmp_path: Path, remote: bool) -> None:
    program = f"""
        import hashlib, mmap, resource
        from pathlib import Path
        from pipeline.checkpoint import load
        from pipeline.checkpoint.commit import CommitRecord
        from pipeline.run.run_dir import RunDir
        run = RunDir({str(tmp_path / "run")!r})
        name = Path(run.path, RunDir.checkpoint(1))
        name.parent.mkdir(parents=True)
        digest = hashlib.sha256()
        with open(name, "wb") as file:
            for number in range(400):
                block = bytes([number % 256]) * (1 << 20)
                digest.update(block)
                file.write(block)
        record = CommitRecord(1, 0, 0, 400 << 20, "sha256:" + digest.hexdigest(), None, 1, "", [])
        run.is_local = {not remote}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        load.check(run, record)
        assert load.fetch_verified(run, record).stat().st_size == record.bytes
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < (200 if remote else 20), "megabytes"


def test_the_cache_keeps_its_limit_and_says_where_a_checkpoint_does_not_fit(
    other_storage: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(other_storage)
    records = [commit(run, step, torch.arange(100_000) + step) for step in (1, 2, 3)]
    monkeypatch.setenv("PIPELINE_CACHE_BYTES", str(records[0].bytes * 2 + 1000))
    paths = [fetch_verified(run, record) for record in records]
    assert [path.exists() for path in paths] == [False, True, True]
    assert sorted(path.suffix for path in cache.iterdir()) == [".bin", ".bin", ".json", ".json", ".lock", ".lock"]
    assert json.loads(paths[1].with_suffix(".json").read_text())["url"] == run.url_of(records[1].name)
    monkeypatch.setenv("PIPELINE_CACHE_BYTES", "1000")
    with pytest.raises(UserError, match=r"PIPELINE_CACHE_BYTES=1000: ram.*step-00000001.ckpt"):
        fetch_verified(run, records[0])


def test_a_local_run_needs_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(str(tmp_path / "run"))
    record = commit(run, 1)
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIPELINE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert newest_verified(run) == (record, fetch_verified(run, record))
    assert load(run, record)["step"] == 1
