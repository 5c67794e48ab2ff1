"""An attempt records what it ran with: versions, revision and image."""

import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run.provenance import DISTRIBUTION, IMAGE, REVISION, provenance, version
from tests.support.commands import ROOT, Ended, without
from tests.support.runs import FIT, attempt


def git(*arguments: str) -> str:
    names = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    return subprocess.run(["git", *names, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    (tmp_path / "model.py").write_text("a = 1\n")
    git("add", "model.py")
    git("commit", "--quiet", "-m", "First")
    return tmp_path


def test_the_revision_is_the_commit_of_the_current_folder_and_says_if_files_differ(repository: Path) -> None:
    commit = git("rev-parse", "HEAD")
    git("tag", "v1")
    assert provenance({})["revision"] == commit
    (repository / "new.txt").touch()  # not tracked: a run directory, most likely
    assert provenance({})["revision"] == commit
    (repository / "model.py").write_text("a = 2\n")
    assert provenance({})["revision"] == f"{commit}-changed"


def test_without_a_repository_or_git_the_revision_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert provenance({})["revision"] is None
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance({})["revision"] is None


def test_an_image_names_itself_and_its_revision() -> None:
    found = provenance({IMAGE: "registry/x:1", REVISION: "abc"})
    assert (found["image"], found["revision"]) == ("registry/x:1", "abc")
    assert provenance({IMAGE: "", REVISION: "abc"})["image"] is None


def test_versions_are_those_of_what_is_imported_and_nothing_is_imported_for_them() -> None:
    without(
        ("torch", "numpy"),
        "from pipeline.run.provenance import provenance; import sys\n"
        "assert sorted(provenance({'PIPELINE_REVISION': 'x'})['versions']) == ['pipeline', 'python']",
    )


def test_the_version_is_that_of_what_is_installed_and_pyproject_is_where_it_stands() -> None:
    """Where a checkout is imported and was never installed, nothing is made up."""
    stands = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert stands["name"] == DISTRIBUTION
    assert version() in (stands["version"], "unknown")


def test_each_attempt_has_its_record(app: Callable[..., Ended], tmp_path: Path) -> None:
    import torch

    assert app(*FIT, "--run_dir", tmp_path).status == 0
    record = attempt(str(tmp_path), 1)
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["pipeline"] == version()
    assert record["versions"]["lightning"].startswith("2.")
    assert record["nodes"] == 1
    assert record["image"] is None
    assert record["revision"] is None or len(record["revision"].removesuffix("-changed")) == 40
