"""`python -m pipeline new`: one ending, or one sentence, and nothing is overwritten."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commands.new import command
from tests.support.commands import Ended, assert_one_message, without

App = Callable[..., Ended]


@pytest.fixture(autouse=True)
def _installed(app: App, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "version", lambda: "1.2.3")
    monkeypatch.chdir(tmp_path)


def test_it_says_what_was_written_and_the_next_two_commands(app: App, tmp_path: Path) -> None:
    ended = app("new", "deep/er/cube")
    assert ended.status == 0, ended.text
    first, *rest = ended.err.splitlines()
    written = [path for path in (tmp_path / "deep/er/cube").rglob("*") if path.is_file()]
    assert first.startswith(f"wrote {len(written)} files to {tmp_path}/deep/er/cube: the package cube")
    assert first.endswith("for torchx-lightning-pipeline 1.2.3")
    assert rest == ["next:", "  cd deep/er/cube && make setup test", "  make pipeline"]


def test_an_empty_repository_with_an_environment_is_as_good_as_an_empty_folder(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cube" / ".git").mkdir(parents=True)
    (tmp_path / "cube" / ".venv").mkdir()
    monkeypatch.chdir(tmp_path / "cube")
    ended = app("new", ".")
    assert ended.status == 0, ended.text
    assert "  make setup test\n" in ended.err
    assert (tmp_path / "cube/cube/model.py").exists()


def test_the_name_may_differ_from_the_folder_s(app: App, tmp_path: Path) -> None:
    assert app("new", "My Folder", "--name", "cube").status == 0
    assert "class_path: cube.model.Classifier" in (tmp_path / "My Folder/configs/train.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "the following arguments are required: folder"),
        (("s3://bucket/cube",), "is a URL: a project is a local folder"),
        (("full",), "is not empty: README.md, model.py would be in the way, and nothing is overwritten"),
        (("many",), "is not empty: 0, 1, 2, 3, 4 and 3 more would be in the way"),
        (("full/README.md",), "cannot be used: Not a directory"),
        (("My-Net",), "add --name my_net"),
        (("cube", "--name", "torch"), "name='torch' is taken by"),
        (("/proc/cube",), "cannot be written"),
        (("x" * 300, "--name", "cube"), "cannot be"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    app: App, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    for folder, names in (("full", ("README.md", "model.py")), ("many", map(str, range(8)))):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert_one_message(app("new", *arguments), words)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_all_that_is_wrong_is_said_at_once(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "My-Net").mkdir()
    (tmp_path / "My-Net" / "mine").write_text("")
    monkeypatch.setattr(command, "version", lambda: "unknown")
    ended = app("new", "My-Net")
    assert ended.status == 2
    assert [word in ended.err for word in ("is not empty", "add --name", "without being installed")] == [True] * 3


def test_it_needs_neither_torch_nor_torchx(tmp_path: Path) -> None:
    program = f"from pipeline.commands import dispatch; assert dispatch.main(['new', {str(tmp_path / 'cube')!r}]) == 0"
    os.chdir(tmp_path)
    without(
        ("torch", "torchx", "lightning", "numpy"),
        "from pipeline.commands.new import command\ncommand.version = lambda: '1'\n" + program,
    )
