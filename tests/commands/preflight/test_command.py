"""`python -m pipeline preflight`: the report on this machine, and what the user must change."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.agent_harness import free_port
from tests.support.commands import Ended

App = Callable[..., Ended]


def test_alone_it_looks_at_this_machine(app: App, tmp_path: Path) -> None:
    ended = app("preflight", "--run_dir", tmp_path / "run")
    assert ended.status == 0, ended.text
    assert "preflight of 1 node x 1 process: ready" in ended.out
    for word in ("devices: ", "memory: ", "shared memory: ", "disk: ", "storage: "):
        assert word in ended.out
    ended = app("preflight", "--run_dir", tmp_path / "run", "--memory", 1 << 30)
    assert ended.status == 2
    assert "preflight of 1 node x 1 process: action required" in ended.out
    assert f"{1 << 30} MB are required: request more (--memory), or use a node that has it" in ended.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--gpus", "-1", "--shm", "-2"], ["gpus=-1", "shm=-2"]), (["--seconds", "0"], ["seconds=0"])],
)
def test_a_mistake_is_said(app: App, arguments: list[str], words: list[str]) -> None:
    ended = app("preflight", "--run_dir", "runs/x", *arguments)
    assert ended.status == 2
    for word in words:
        assert word in ended.err


def test_rank_0_out_of_reach_is_said_without_a_traceback(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topology = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    where = {"GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in {**topology, **where}.items():
        monkeypatch.setenv(name, value)
    ended = app("preflight", "--run_dir", tmp_path / "run", "--seconds", 1)
    assert ended.status == 1, ended.text
    assert f"127.0.0.1:{where['MASTER_PORT']} cannot be reached: [Errno 111] Connection refused" in ended.out
    assert "Traceback" not in ended.text
