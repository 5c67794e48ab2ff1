"""What would be run in Docker, without an engine; tests/docker runs it."""

from datetime import datetime
from typing import Any

import pytest
from torchx.runner import get_runner
from torchx.schedulers.docker_scheduler import DockerContainer

from components.launch import main
from components.local_docker import LocalDocker, assigned, create_scheduler
from components.train import train
from pipeline.errors import UserError

SECRET = "tell-nobody"


def containers(*app_args: str, cfg: dict[str, Any] | None = None, **parameters: Any) -> list[DockerContainer]:
    app = train(*app_args, **{"run_dir": "s3://bucket/run", "nodes": "2", **parameters})
    return create_scheduler("test").submit_dryrun(app, cfg or {}).request.containers


def test_it_replaces_torchxs_own_and_hides_no_other_scheduler() -> None:
    with get_runner() as runner:
        names = set(runner.scheduler_backends())
        assert isinstance(runner._scheduler("local_docker"), LocalDocker)
        for name in ("local_cwd", "slurm"):
            assert runner.scheduler_run_opts(name)
    assert {"local_cwd", "local_docker", "slurm", "kubernetes", "aws_batch", "ray", "lsf"} <= names


def test_each_node_is_a_container_without_privileges_on_a_read_only_root() -> None:
    for replica, container in enumerate(containers(memory=1024, cpu=3, grace=45, shm=256, retries=2)):
        options = container.kwargs
        assert options["labels"]["torchx.pytorch.org/replica-id"] == str(replica)
        assert options["environment"]["TORCHX_RANK0_HOST"].endswith("train-0")
        assert (options["cap_drop"], options["security_opt"]) == (["ALL"], ["no-new-privileges"])
        assert options["read_only"] is True
        assert [mount["Target"] for mount in options["mounts"]] == ["/tmp"]
        assert options["mem_limit"] == "1024m"
        assert options["shm_size"] == "256m"
        assert options["nano_cpus"] == 3_000_000_000
        assert options["stop_timeout"] == 55
        assert options["restart_policy"] == {"Name": "on-failure", "MaximumRetryCount": 2}
        assert options["network"] == "torchx"


def test_its_run_options_take_effect() -> None:
    cfg = create_scheduler("test").run_opts().cfg_from_str("user=7:8,read_only=False")
    (one, _) = containers(cfg=cfg, mounts=["type=bind", "src=/data", "dst=/tmp", "readonly"])
    assert one.kwargs["user"] == "7:8"
    assert "read_only" not in one.kwargs
    assert [(mount["Source"], mount["ReadOnly"]) for mount in one.kwargs["mounts"]] == [("/data", True)]


def test_shared_memory_defaults_to_all_of_the_memory() -> None:
    assert {one.kwargs["shm_size"] for one in containers(memory=512)} == {"512m"}


def test_a_secret_is_in_no_printed_form_and_in_no_appdef(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    monkeypatch.setenv("MY_OTHER_KEY", SECRET)
    app = train(run_dir="s3://bucket/run", secrets=["MY_KEY"])
    info = create_scheduler("test").submit_dryrun(app, {"copy_env": ["MY_*"]})
    assert info.request.containers[0].kwargs["secrets"] == ["MY_KEY", "MY_OTHER_KEY"]
    assert SECRET not in f"{app}{info}{info.request!r}"


def test_a_given_value_takes_precedence_over_a_copied_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    (one, *_) = containers(env={"MY_KEY": "given"}, cfg={"copy_env": ["MY_*"]})
    assert one.kwargs["environment"]["MY_KEY"] == "given"
    assert one.kwargs["secrets"] == []


def test_an_unset_secret_is_reported_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-s", "local_docker", "--run_dir", "s3://bucket/run", "--secrets", "NOT_SET_1,NOT_SET_2"]) == 2
    message = capsys.readouterr().err
    assert "secrets=NOT_SET_1: this variable is not set here" in message
    assert "secrets=NOT_SET_2" in message


def test_no_gpu_is_given_twice() -> None:
    free = ["GPU-a", "GPU-b", "GPU-c"]
    first, free = assigned(free, 2)
    second, free = assigned(free, 1)
    assert (first, second, free) == (["GPU-a", "GPU-b"], ["GPU-c"], [])
    with pytest.raises(UserError, match="gpu=1: of this host's GPUs 0 are free"):
        assigned(free, 1)


def test_a_missing_docker_engine_is_a_user_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    assert main(["-s", "local_docker", "--run_dir", "s3://bucket/run"]) == 2
    assert "no Docker engine answers" in capsys.readouterr().err


class Restarted:
    """A container whose log grows once it has been restarted; the engine starts a log at a whole second."""

    def __init__(self) -> None:
        self.status, self.attrs = "restarting", {"State": {"ExitCode": 0}}
        self.written = ["2026-01-01T00:00:01.5Z a", "2026-01-01T00:00:01.5Z b"]
        self.asked: list[datetime | None] = []

    def logs(self, since: datetime | None, **_: Any) -> list[bytes]:
        self.asked.append(since)
        return [f"{line}\r\n".encode() for line in self.written]

    def reload(self) -> None:
        self.status = "exited" if len(self.written) > 2 else self.status
        self.written = [*self.written[:2], "2026-01-01T00:00:01.5Z c", "2026-01-01T00:00:02Z d"]


def test_a_log_is_followed_over_a_restart_of_its_container(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, container = create_scheduler("test"), Restarted()
    monkeypatch.setattr(LocalDocker, "_get_container", lambda *_: container)
    assert list(scheduler.log_iter("app", "train", should_tail=True)) == ["a\n", "b\n", "c\n", "d\n"]
    assert container.asked[0] is None
    assert str(container.asked[1]) == "2026-01-01 00:00:01+00:00"
    assert list(scheduler.log_iter("app", "train", regex="[cd]")) == ["c\n", "d\n"]
