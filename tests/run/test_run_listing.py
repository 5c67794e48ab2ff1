"""Runs are found by what lies in them, and nothing else is taken for one."""

import os
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir
from pipeline.run.run_listing import RunTree


def roots(url: str) -> list[str]:
    base = RunDir(url).url
    return [run.url.removeprefix(base).lstrip("/") for run in RunTree(url).listings()]


@pytest.mark.parametrize(
    ("name", "is_run"),
    [
        ("attempts/0001.json", True),
        ("attempts/12345.json", True),
        ("checkpoints/step-00000001.json", True),
        ("checkpoints/step-00000001.ckpt", True),
        ("lease.json", True),
        ("fit.yaml", True),
        ("attempts/notes.json", False),
        ("checkpoints/epoch=1-step=7.ckpt", False),
        ("checkpoints/last.ckpt", False),
        ("myfit.yaml", False),
        ("test.yaml", False),
        ("logs/hparams.yaml", False),
    ],
)
def test_a_run_is_what_holds_a_file_that_a_run_leaves(storage: str, name: str, is_run: bool) -> None:
    RunDir(storage).write(f"x/{name}", b"1")
    assert roots(storage) == ["x"] * is_run


def test_the_folder_of_a_sweep_is_no_run_for_its_lease_but_a_run_may_hold_a_sweep_json(storage: str) -> None:
    for name in ("s/lease.json", "s/sweep.json", "s/0001/fit.yaml", "run/sweep.json", "run/attempts/0001.json"):
        RunDir(storage).write(name, b"1")
    assert roots(storage) == ["run", "s/0001"]


def test_every_file_belongs_to_the_innermost_run(storage: str) -> None:
    base = RunDir(storage)
    for name in ("fit.yaml", "logs/a", "x/fit.yaml", "x/logs/deep/b", "x/y/z/lease.json", "x/y/z/c", "x-y"):
        base.write(name, b"12")
    found = {run.url.removeprefix(base.url).lstrip("/"): sorted(run.files) for run in RunTree(storage).listings()}
    assert found == {"": ["fit.yaml", "logs/a", "x-y"], "x": ["fit.yaml", "logs/deep/b"], "x/y/z": ["c", "lease.json"]}
    assert all(file.size == 2 for run in RunTree(storage).listings() for file in run.files.values())


def test_names_with_what_a_pattern_would_take_for_its_own(storage: str) -> None:
    for name in ("a[b]*", "a b", "ä=1,x"):
        RunDir(f"{storage}/{name}").write("attempts/0001.json", name.encode())
    tree = RunTree(storage)
    listings = tree.listings()
    assert [data for _, _, data in tree.read((run, "attempts/0001.json") for run in listings)] == [
        run.url.rpartition("/")[2].encode() for run in listings
    ]
    assert len(listings) == 3


def test_a_file_that_is_gone_harms_no_other(storage: str) -> None:
    RunDir(storage).write("fit.yaml", b"1")
    tree = RunTree(storage)
    (run,) = tree.listings()
    (_, _, gone), (_, _, there) = tree.read([(run, "lease.json"), (run, "fit.yaml")])
    assert isinstance(gone, FileNotFoundError)
    assert there == b"1"


def test_what_is_not_there_is_the_user_s_to_mend(tmp_path: Path, s3: str) -> None:
    for url in (f"{tmp_path}/none", f"{s3}/none-at-all", "s3://pipeline-tests-no-such-bucket/x"):
        with pytest.raises(UserError, match=f"url='{url}' (does not exist|cannot be read)"):
            RunTree(url).listings()
    for url in ("memory://x", "", "s3:/x", "nonsense://x"):
        with pytest.raises(UserError, match="url="):
            RunTree(url).listings()
    assert RunTree(str(tmp_path)).listings() == [], "an empty folder is no mistake"


@pytest.mark.parametrize("url", ["{}", "{}/"])
def test_a_bucket_may_be_named_by_itself(s3: str, url: str) -> None:
    RunDir(f"{s3}/listed/at/root").write("fit.yaml", b"1")
    assert "listed/at/root" in roots(url.format(s3))


def test_a_folder_that_may_not_be_read_is_said_and_harms_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunDir(f"{tmp_path}/good").write("fit.yaml", b"1")
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scandir(folder: Path) -> object:
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert roots(str(tmp_path)) == ["good"]
    assert "closed is left out" in caplog.text


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    RunDir(f"{tmp_path}/good").write("fit.yaml", b"1")
    (tmp_path / "good" / "loop").symlink_to(tmp_path)
    (tmp_path / "latest").symlink_to("good")
    assert roots(str(tmp_path)) == ["good"]
    assert roots(f"{tmp_path}/latest") == [""], "but the URL may be one"
