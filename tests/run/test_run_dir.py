"""Storage is a URL: the same body on a folder and on S3."""

import os
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.checkpoint.transfer import open_ranges, open_writer
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir, next_run_dir


def test_what_is_written_is_read_back_the_same_on_every_storage(storage: str) -> None:
    run = RunDir(storage)
    run.write_json("evaluation/receipt.json", {"samples": 3})
    assert run.read_json("evaluation/receipt.json") == {"schema": 1, "samples": 3}
    assert run.size("evaluation/receipt.json") == len(run.read("evaluation/receipt.json") or b"")
    run.remove("evaluation/receipt.json")
    assert run.read("evaluation/receipt.json") is None
    assert run.size("evaluation/receipt.json") is None


def test_another_process_sees_what_was_written_after_it_looked(storage: str) -> None:
    looking, writing = RunDir(storage), RunDir(storage)
    assert looking.steps() == {"ckpt": {}, "json": {}}
    writing.write(RunDir.checkpoint(7), b"weights")
    assert looking.steps() == {"ckpt": {7: 7}, "json": {}}
    writing.remove(RunDir.checkpoint(7))
    assert looking.steps()["ckpt"] == {}


def test_steps_are_found_among_foreign_files(storage: str) -> None:
    run = RunDir(storage)
    for name in (
        "step-00000120.ckpt",
        "step-00000120.json",
        "step-123456789.ckpt",
        "last.ckpt",
        "step-1.ckpt",
        "x.json",
    ):
        run.write(f"checkpoints/{name}", b"12345")
    assert run.steps() == {"ckpt": {120: 5, 123456789: 5}, "json": {120: 5}}


@pytest.mark.parametrize("data", [b"", b'{"schema": 1', b"[1]", b'{"schema": 2}', b"\xff\xfe", b'{"no": "schema"}'])
def test_a_torn_or_foreign_json_is_not_there(tmp_path: Path, data: bytes) -> None:
    run = RunDir(str(tmp_path))
    run.write("x.json", data)
    assert run.read_json("x.json") is None


def test_nan_is_never_written_into_a_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        RunDir(str(tmp_path)).write_json("x.json", {"value": float("nan")})


def test_a_nonce_is_seen_only_at_the_same_place(storage: str) -> None:
    nonce = RunDir(storage).write_nonce()
    assert RunDir(storage).sees(nonce)
    assert not RunDir(storage + "-elsewhere").sees(nonce)


def test_default_run_directories_count_up(tmp_path: Path) -> None:
    base = str(tmp_path / "runs")
    assert next_run_dir("digits", base) == f"{base}/digits-1"
    for name in ("digits-9", "digits-x", "digits-1-2", "other-30"):
        os.makedirs(f"{base}/{name}")
    assert next_run_dir("digits", base) == f"{base}/digits-10"


@pytest.mark.parametrize("url", ["", "  ", "nosuch://bucket/x", "memory://x"])
def test_a_url_that_cannot_be_is_refused_by_name(url: str) -> None:
    with pytest.raises(UserError, match="run_dir="):
        RunDir(url)


def test_a_folder_that_cannot_be_written_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"run_dir='.*file/run' cannot be written: .*Give a folder"):
        RunDir(str(tmp_path / "file" / "run")).write_nonce()


def test_a_missing_bucket_is_one_clear_message(s3: str) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        RunDir("s3://no-such-bucket-here/run").write_nonce()


def test_brackets_and_stars_in_a_name_are_no_pattern(storage: str) -> None:
    run = RunDir(f"{storage}/lr=[0.1]*")
    for name in ("a.json", "b.json"):
        run.write_json(name, {"name": name})
    found = run.read_jsons(["a.json", "b.json", "none.json"])
    assert found == {
        "a.json": {"schema": 1, "name": "a.json"},
        "b.json": {"schema": 1, "name": "b.json"},
        "none.json": None,
    }


def test_a_storage_that_only_fsspec_knows_carries_a_run(other_storage: str) -> None:
    run = RunDir(other_storage)
    assert run.url == other_storage.replace("ram://", "ram:///")
    assert run.create("a", b"1")
    assert not run.create("a", b"2")
    run.write_json("b.json", {"x": 1})
    assert (run.read("a"), run.read_jsons(["b.json"])) == (b"1", {"b.json": {"schema": 1, "x": 1}})


def test_starts_at_the_same_moment_choose_names_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        chosen = list(pool.map(lambda _: next_run_dir("tiny", str(tmp_path / "runs")), range(24)))
    assert sorted(chosen) == sorted(f"{tmp_path}/runs/tiny-{number}" for number in range(1, 25))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("s3://b//x", "s3://b/x"),
        ("s3://b/a//x/", "s3://b/a/x"),
        ("s3://b/./x", "s3://b/x"),
        ("s3://b///", "s3://b"),
        ("s3://b", "s3://b"),
        ("s3a://b/x", "s3://b/x"),
        ("s3://b/with space/ü/100%/a?b#c", "s3://b/with space/ü/100%/a?b#c"),
    ],
)
def test_a_url_has_one_form_for_one_place(given: str, meant: str) -> None:
    run = RunDir(given)
    assert (run.url, str(run)) == (meant, meant)
    assert run.object_of("x.json") == (
        "b",
        f"{meant.removeprefix('s3a://').removeprefix('s3://b').lstrip('/')}/x.json".lstrip("/"),
    )


def test_local_paths_are_where_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for given in ("~/run", f"file://{tmp_path}/run", "run/", "./run", "other/../run", f"{tmp_path}//run"):
        RunDir(given).write("x.json", given.encode())
        assert (tmp_path / "run/x.json").read_text() == given


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("s3://b/x/../y", "has '..' in it"),
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3:/b/x", "give 's3://b/x'"),
        (" s3://b/x", "has spaces around it"),
        ("s3://b/x\n", "has spaces around it"),
        ("s3://b/\x07", "a character that cannot be printed"),
    ],
)
def test_a_url_that_cannot_carry_a_checkpoint_is_refused(url: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        RunDir(url)


@pytest.mark.parametrize(
    "name", ["a//b/./c", "with space", "ü日本", "100%20", "a?b", "a#b", "a+b&c=d", "[1]*", "a\\b:'\""]
)
def test_a_checkpoint_and_small_files_meet_in_one_folder_whatever_its_name(s3: str, name: str) -> None:
    run = RunDir(f"{s3}/{uuid.uuid4().hex[:12]}/{name}/run")
    writer = open_writer(run, RunDir.checkpoint(3))
    writer.write(b"weights")
    writer.close()
    run.write_json(RunDir.record(3), {"step": 3})
    assert run.steps() == {"ckpt": {3: 7}, "json": {3: run.size(RunDir.record(3))}}
    assert run.read(RunDir.checkpoint(3)) == bytes(open_ranges(run, RunDir.checkpoint(3))(0, 7)) == b"weights"
