"""A node's agent ends as the process that failed first did, and adds no traceback of its own."""

import sys
from pathlib import Path

import pytest

from tests.conftest import command

AGENT = (sys.executable, "-m", "pipeline.agent", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")


@pytest.mark.timeout(90)
@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(2)", 2, ""),
        ("import sys; sys.exit(7)", 7, "ended with status 7"),
        ("import os; os.kill(os.getpid(), 9)", 137, "ended with SIGKILL"),
    ],
)
def test_the_agents_status_is_that_of_its_process(tmp_path: Path, program: str, status: int, said: str) -> None:
    (tmp_path / "program.py").write_text(program)
    ended = command(*AGENT, "--nproc-per-node=1", tmp_path / "program.py")
    assert ended.status == status
    assert "Traceback" not in ended.text
    assert said in ended.err
    assert bool(said) == bool(ended.err.strip())


@pytest.mark.timeout(90)
def test_a_users_mistake_is_one_line_through_the_agent_and_the_driver(tmp_path: Path) -> None:
    arguments = ("--nodes", "2", "--run_dir", tmp_path / "run", "--", "--trainer.max_epoch=3")
    ended = command(sys.executable, "-m", "components.launch", *arguments)
    assert ended.status == 1
    assert len(ended.text.strip().splitlines()) == 2, ended.text
    assert "did you mean 'trainer.max_epochs'?" in ended.out
    assert "train: failed" in ended.err
