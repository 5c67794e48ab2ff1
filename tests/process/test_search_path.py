"""This program runs beside a user's own module of its name, whose other modules are found as ever."""

import os
import sys
from pathlib import Path

import pytest

from pipeline.process.search_path import look_for_users_modules_last
from tests.support.commands import ROOT, command

MINE = "from tests.support.models import Regression\n\n\nclass Net(Regression):\n    pass\n"


@pytest.mark.parametrize("file", ["pipeline.py", "pipeline/__init__.py"])
def test_beside_a_pipeline_of_the_users_own_python_is_told_to_look_for_theirs_last(tmp_path: Path, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("raise SystemExit('this is mine')\n")
    (tmp_path / "mine.py").write_text(MINE)
    env = {"PYTHONPATH": str(ROOT)}
    line = (sys.executable, "-m", "pipeline", "summary", "--model=mine.Net")
    assert "this is mine" in command(*line, cwd=tmp_path, env=env).text, "Python looks into the current folder first"
    ended = command(*line, cwd=tmp_path, env={**env, "PYTHONSAFEPATH": "1"})
    assert ended.status == 0, ended.text
    assert "Linear" in ended.out


def test_the_search_path_stays_as_it_is_unless_python_was_told_to_be_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    before = list(sys.path)
    look_for_users_modules_last()
    assert sys.path == before
    assert "PYTHONSAFEPATH" not in os.environ


def test_what_was_told_by_a_flag_is_told_to_children_by_the_environment(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pipeline.process.search_path import look_for_users_modules_last as look; look(); "
        "print(os.environ['PYTHONSAFEPATH'], sys.path[-1])"
    )
    ended = command(sys.executable, "-P", "-c", program, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert ended.out.split() == ["1", str(tmp_path)], ended.text
