"""Bad input of `export` is one clear message, with status 2, and nothing is written."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended, assert_one_message
from tests.support.exported import of

App = Callable[..., Ended]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of a regression, with two checkpoints."""
    from pipeline.cli import main

    url = tmp_path_factory.mktemp("asked") / "run"
    assert main([*of("Trained", "--checkpoints.every_n_steps=1"), "--run_dir", str(url)]) == 0
    return url


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--format", "tflite"), "invalid choice: 'tflite' (choose from "),
        (("--format", "pt2", "--submodul", "x"), "unrecognized argument --submodul; did you mean '--submodule'?"),
        (
            ("--format", "pt2", "--checkpoint", "7"),
            "checkpoint=7 must be 'best', 'latest' or a committed step, now 1, 2",
        ),
        (("--format", "pt2", "--checkpoint", "newest"), "checkpoint='newest' must be"),
        (("--format", "pt2", "--output", "{run}"), "is a folder: name the file in it"),
        (("--format", "pt2", "--output", "{run}/x/"), "names no file"),
        (("--format", "pt2", "--output", "{run}/checkpoints/step-00000002.ckpt"), "is one of the run's own files"),
        (("--format", "pt2", "--output", "{run}/fit.yaml", "--overwrite", "true"), "is one of the run's own files"),
        (("--format", "safetensors", "--output", "{run}/fit.yaml/x"), "cannot be"),
        (("--format", "pt2", "--output", "nothing://x/y"), "Protocol not known: nothing"),
        (("--format", "pt2", "--input_shape", "four"), "input_shape='four' must be the sizes of a tensor"),
        (("--format", "pt2", "--input_shape", "2,4:letters"), "must be the sizes of a tensor"),
        (("--format", "pt2", "--input_shape", "2,7"), "input_shape='2,7': forward does not take it"),
        (("--format", "pt2", "--submodule", "nothing.like.it"), "is no part of Trained; it has layer"),
    ],
)
def test_a_mistake_is_one_message(app: App, run: Path, flags: tuple[str, ...], words: str) -> None:
    before = sorted(run.rglob("*"))
    ended = app("export", "--run_dir", run, *(flag.format(run=run) for flag in flags))
    assert_one_message(ended, words)
    assert sorted(run.rglob("*")) == before


def test_a_damaged_checkpoint_is_never_exported(app: App, run: Path, tmp_path: Path) -> None:
    path = run / RunDir.checkpoint(1)
    good = path.read_bytes()
    path.write_bytes(good[:-40] + b"x" + good[-39:])
    ended = app("export", "--run_dir", run, "--format", "safetensors", "--checkpoint", "1", "--output", tmp_path / "x")
    path.write_bytes(good)
    assert_one_message(ended, "checkpoint=1 is damaged")
    assert not (tmp_path / "x").exists()


def test_a_run_without_checkpoints_says_so(app: App, tmp_path: Path) -> None:
    ended = app("export", "--run_dir", tmp_path, "--format", "safetensors")
    assert_one_message(ended, "has no checkpoint: train first")


def test_another_file_is_replaced_only_when_that_is_asked_for(app: App, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.pt"
    file.write_text("mine")
    flags = ("export", "--run_dir", run, "--format", "state_dict", "--output", file)
    assert_one_message(app(*flags), "is there already, with another content")
    assert file.read_text() == "mine"
    assert not Path(f"{file}.json").exists()
    ended = app(*flags, "--overwrite", "true")
    assert ended.status == 0, ended.text
    assert json.loads(Path(f"{file}.json").read_text())["step"] == 2
    assert stat.S_ISREG(file.stat().st_mode)
