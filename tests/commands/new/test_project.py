"""The files of a new project: the template's, with three words replaced; all of them or none."""

import json
import os
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from pipeline.commands.new import project
from pipeline.commands.new.project import TEMPLATE, package_source, project_texts, write_project
from pipeline.errors import UserError
from tests.support.commands import ROOT


def test_nothing_of_the_template_is_left_in_a_project() -> None:
    texts = project_texts("cube", "1.2.3", "")
    everything = "".join(f"{path}\n{text}" for path, text in texts.items())
    assert "my_project" not in everything
    assert "0.0.0" not in everything
    assert "torchx-lightning-pipeline[s3]==1.2.3" in texts[Path("requirements.txt")].splitlines()
    assert texts[Path("constraints.txt")] == (ROOT / "pipeline/constraints.txt").read_text()
    for name in (
        "cube/model.py",
        "tests/test_two_nodes.py",
        ".torchxconfig",
        ".github/workflows/test.yml",
        "Dockerfile",
    ):
        assert Path(name) in texts


def test_what_tools_leave_in_the_template_is_no_part_of_a_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("my_project/__pycache__", ".ruff_cache/0.1"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "left").write_bytes(b"\xff")
    (tmp_path / "my_project/model.py").write_text("import my_project\n")
    monkeypatch.setattr(project, "TEMPLATE", tmp_path)
    assert project_texts("cube", "1", "").keys() == {Path("constraints.txt"), Path("cube/model.py")}


@pytest.mark.parametrize(
    "source", ["", "file:///tmp/a%20b.whl", "git+https://example.com/x.git@abc#subdirectory=a", "https://x/y?a=$b&c=d"]
)
def test_make_passes_the_source_of_the_package_on_as_it_is(tmp_path: Path, source: str) -> None:
    text = project_texts("cube", "1", source)[Path("Makefile")] + "shown:\n\t@printf '%s\\n' $(PIPELINE)\n"
    (tmp_path / "Makefile").write_text(text)
    environment = {"PATH": os.environ["PATH"]}
    run = subprocess.run(["make", "shown"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == source


@pytest.mark.parametrize(
    ("record", "source"),
    [
        (None, ""),
        ({"url": "file:///w/x.whl", "archive_info": {}}, "file:///w/x.whl"),
        ({"url": "file:///clone", "dir_info": {"editable": True}}, "file:///clone"),
        ({"url": "https://h/r", "vcs_info": {"vcs": "git", "commit_id": "c"}}, "git+https://h/r@c"),
        (
            {"url": "https://h/r", "subdirectory": "a", "vcs_info": {"vcs": "git", "commit_id": "c"}},
            "git+https://h/r@c#subdirectory=a",
        ),
        ({"url": "https://h/r", "vcs_info": {"vcs": "git"}}, ""),
        ([], ""),
        ("{damaged", ""),
    ],
)
def test_where_pip_has_installed_the_package_from_is_where_a_project_does(
    monkeypatch: pytest.MonkeyPatch, record: object, source: str
) -> None:
    text = record if isinstance(record, str) or record is None else json.dumps(record)

    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return text

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed())
    assert package_source() == source


def test_a_project_that_cannot_be_written_leaves_nothing_and_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "cube").mkdir()
    (tmp_path / "cube" / "tests").write_text("a file in the place of a folder")
    with pytest.raises(UserError, match="cannot be written: File exists"):
        write_project(tmp_path / "cube", "cube", "1", "")
    assert [path.name for path in (tmp_path / "cube").iterdir()] == ["tests"]
    with pytest.raises(UserError, match="cannot be written"):
        write_project(Path("/proc/cube"), "cube", "1", "")


def test_the_steps_of_its_ci_are_targets_of_its_makefile() -> None:
    steps = yaml.safe_load((TEMPLATE / ".github/workflows/test.yml").read_text())["jobs"]["test"]["steps"]
    makefile = (TEMPLATE / "Makefile").read_text()
    commands = [step["run"] for step in steps if "run" in step]
    assert commands == ["make setup", "make check", "make test"]
    for each in commands:
        assert f"\n{each.removeprefix('make ')}: ## " in makefile
