"""The same things happen to a training on every launcher, and each launcher gives the same answers."""

import os
from pathlib import Path

import pytest

from tests.support.commands import ROOT
from tests.support.launcher_cases import CASES, Launcher, tried

LOCAL = Launcher(("-s", "local_cwd"), restarts=False, continues=False)
FAST = ("crash at each start", "an agent killed")
"""What no other test of `make test` shows."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES])
def test_what_happens_on_local_cwd(tmp_path: Path, name: str) -> None:
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests/docker/own")))
    tried(CASES[name], LOCAL, tmp_path, env={"PYTHONPATH": path})
