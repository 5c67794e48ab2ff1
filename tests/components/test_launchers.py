"""The same things happen to a training on every launcher, and each launcher gives the same answers."""

import os
import re
from pathlib import Path

import pytest

from tests.support.commands import ROOT
from tests.support.launcher_cases import CASES, Launcher, tried

LOCAL = Launcher(("-s", "local_cwd"), restarts=False, continues=False)
SHOWN_ELSEWHERE = ("done", "user's mistake", "crash", "a rank killed", "preempted")
"""By other tests of `make test`, so that these are slow ones."""
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SHOWN_ELSEWHERE else []) for name in CASES]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", NAMES)
def test_what_happens_on_local_cwd(tmp_path: Path, name: str) -> None:
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests/docker/own")))
    tried(CASES[name], LOCAL, tmp_path, env={"PYTHONPATH": path})


def test_the_docs_have_a_row_for_each() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/launchers.md").read_text(), re.MULTILINE)
    assert not set(CASES) - {"done"} - set(rows)
