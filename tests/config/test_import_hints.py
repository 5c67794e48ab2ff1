"""A class path that is not found: the message says how a user's own package is found, or what else is wrong."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import Ended, assert_one_message

App = Callable[..., Ended]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Modules of a user's own."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_half", raising=False)
    (tmp_path / "own_half.py").write_text("class Data: pass\n")
    (tmp_path / "own_broken.py").write_text("import surely_not_installed.at_all\n")
    return tmp_path


@pytest.mark.parametrize("flag", ["model", "data.train", "trainer.callbacks"])
@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "own_nowhere.Thing",
            "'own_nowhere' is looked for in the current folder ({cwd}), in the folders of PYTHONPATH",
        ),
        ("own_nowhere.deep.Thing", "install your project (pip install -e .)"),
        ("own_broken.Thing", "own_broken.Thing imports 'surely_not_installed', which is not installed here"),
        ("own_half.Thing", "'own_half' is {modules}/own_half.py, which defines no Thing"),
        ("pipeline.my_models.Thing", "the module 'pipeline' is this program's own, from "),
        ("components.parts.Thing", "the module 'components' is this program's own, from "),
    ],
)
def test_a_class_path_that_is_not_found_is_explained(app: App, modules: Path, flag: str, path: str, words: str) -> None:
    flags = {"model": "tests.support.models.Regression", "data": "pipeline.data.DataModule", flag: path}
    ended = app("fit", *(f"--{name}={value}" for name, value in flags.items()), "--run_dir", modules / "run")
    assert_one_message(ended, words.format(cwd=os.getcwd(), modules=modules))
    assert "Expected a path" not in ended.err
