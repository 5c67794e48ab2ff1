"""One component, every launcher: the AppDefs field by field."""

import inspect
import shlex
import subprocess
from pathlib import Path

import pytest
from torchx.schedulers import get_scheduler_factories
from torchx.specs import AppDef, BindMount, macros
from torchx.specs.file_linter import validate

from components.evaluate import evaluate
from components.train import port_of, train
from pipeline.errors import UserError
from tests.support.commands import ROOT, command


def substituted(app: AppDef, **more: str) -> list[str]:
    """The shell command line of the first replica, as TorchX's macros leave it."""
    values = macros.Values(img_root="", app_id="app-1", replica_id="0", rank0_env="TORCHX_RANK0_HOST", **more)
    return values.apply(app.roles[0]).args


def test_train_is_an_appdef_field_by_field() -> None:
    app = train(
        *("--trainer.max_epochs=3", "--model.name=a b $HOME"),
        run_dir="s3://bucket/run",
        config="my.yaml",
        nodes="2",
        processes=4,
        cpu=8,
        memory=16_000,
        gpu=4,
        image="image:1",
        env={"A": "1"},
        mounts=["type=bind", "src=/data", "dst=/mnt", "readonly"],
        max_restarts=5,
        grace=60,
        join_timeout=900,
        rdzv_port=29_500,
    )
    assert (app.name, len(app.roles)) == ("train", 1)
    role = app.roles[0]
    assert (role.name, role.image, role.num_replicas, role.min_replicas) == ("train", "image:1", 2, None)
    assert (role.resource.cpu, role.resource.memMB, role.resource.gpu) == (8, 16_000, 4)
    assert role.env == {"A": "1", "OMP_NUM_THREADS": "2", "LOGLEVEL": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    assert role.mounts == [BindMount(src_path="/data", dst_path="/mnt", read_only=True)]
    assert role.port_map == {"c10d": 29_500}
    assert role.entrypoint == "sh"
    assert substituted(app) == [
        "-c",
        "exec python -m pipeline.agent --rdzv-backend c10d "
        '--rdzv-endpoint "${TORCHX_RANK0_HOST:-localhost}:29500" --rdzv-id app-1 --nnodes 2 --nproc-per-node 4 '
        "--rdzv-conf join_timeout=900 --max-restarts 5 --shutdown-timeout 60 "
        "--role train -m pipeline fit --config my.yaml --run_dir s3://bucket/run "
        "--trainer.max_epochs=3 '--model.name=a b $HOME'",
    ]


def test_a_users_argument_is_never_expanded_by_shell_or_macro() -> None:
    nasty = "--x=$(touch /tmp/x) ${app_id} `id` 'quoted' \"double\" \\ ; &"
    shell = substituted(train(nasty, run_dir="r", rdzv_port=1))[1]
    shown = subprocess.run(
        ["sh", "-c", shell.replace("exec python", "printf '%s\\n'")], capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines()[-1] == nasty


def test_nodes_may_be_a_range() -> None:
    app = train(run_dir="r", nodes="1:4")
    assert (app.roles[0].num_replicas, app.roles[0].min_replicas) == (4, 1)
    assert "--nnodes 1:4" in app.roles[0].args[1]
    assert train(run_dir="r", nodes="3:3").roles[0].min_replicas is None


@pytest.mark.parametrize(("gpu", "processes", "expected"), [(0, 0, 1), (8, 0, 8), (0, 3, 3), (8, 2, 2)])
def test_there_is_one_process_per_gpu_by_default(gpu: int, processes: int, expected: int) -> None:
    assert f"--nproc-per-node {expected} " in train(run_dir="r", gpu=gpu, processes=processes).roles[0].args[1]


def test_the_users_environment_takes_precedence() -> None:
    assert train(run_dir="r", env={"OMP_NUM_THREADS": "5"}).roles[0].env["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"nodes": "two"}, ["nodes='two'"]),
        ({"nodes": "4:1"}, ["nodes='4:1'"]),
        ({"nodes": "0"}, ["nodes='0'"]),
        ({"run_dir": "memory://x"}, ["lives within one process"]),
        ({"run_dir": ""}, ["run_dir='' is empty"]),
        ({"processes": 5, "gpu": 4}, ["processes=5 on gpu=4"]),
        ({"cpu": 0, "memory": 0, "gpu": -1}, ["cpu=0", "memory=0", "gpu=-1"]),
        ({"config": "nothing"}, ["config='nothing'"]),
        ({"mounts": ["dst=/x"]}, ["mounts="]),
        ({"grace": 0, "join_timeout": -1}, ["grace=0", "join_timeout=-1"]),
        ({"max_restarts": -1, "rdzv_port": 99_999, "nodes": "x"}, ["max_restarts=-1", "rdzv_port=99999", "nodes='x'"]),
    ],
)
def test_arguments_that_cannot_work_are_rejected_all_at_once(arguments: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        train(**{"run_dir": "r", **arguments})  # type: ignore[arg-type]
    assert len(raised.value.problems) == len(words)
    for word in words:
        assert any(word in problem for problem in raised.value.problems), word


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_torchx_accepts_each_component_and_shows_its_docstring(name: str) -> None:
    path = str(ROOT / "components" / f"{name}.py")
    assert validate(path, name) == []
    ended = command("torchx", "run", "-s", "local_cwd", f"{path}:{name}", "--help")
    assert ended.status == 0, ended.text
    assert "where the run lies" in ended.out or "the run to evaluate" in ended.out
    for flag in inspect.signature({"train": train, "evaluate": evaluate}[name]).parameters:
        assert flag == "app_args" or f"--{flag} " in ended.out


def test_torchxs_own_schedulers_stay_available() -> None:
    assert {"local_cwd", "local_docker", "slurm", "kubernetes"} <= set(get_scheduler_factories())


def test_the_same_run_has_the_same_manifest_each_time_and_another_run_another_port() -> None:
    again = [train(run_dir="s3://bucket/run", nodes="2") for _ in range(2)]
    assert again[0] == again[1]
    ports = {port_of(f"runs/{number}") for number in range(20)}
    assert len(ports) == 20
    assert ports <= set(range(10_000, 30_000))


def test_the_dryrun_of_torchx_shows_the_same_command(tmp_path: Path) -> None:
    ended = command(
        *("torchx", "run", "--dryrun", "-s", "local_cwd", "components/train.py:train"),
        *("--run_dir", tmp_path, "--rdzv_port", "29500", "--", "--trainer.max_epochs=1"),
    )
    assert ended.status == 0, ended.text
    assert "-m pipeline fit" in ended.out
    assert "--trainer.max_epochs=1" in ended.out


def test_standby_is_passed_to_the_agents_where_it_is_chosen() -> None:
    assert "--standby" not in train(run_dir="runs/a").roles[0].args[1]
    assert " --standby false " in train(run_dir="runs/a", standby="false").roles[0].args[1]
    with pytest.raises(UserError, match="standby='off' must be one of auto, true, false"):
        train(run_dir="runs/a", standby="off")


def test_preflight_passes_the_resources_of_a_node_to_the_agents() -> None:
    (role,) = train(run_dir="s3://bucket/a b", gpu=2, shm=256, preflight=True).roles
    words = shlex.split(role.args[1].replace("$$", "$"))
    asked = words[words.index("--preflight") + 1]
    assert shlex.split(asked) == ["--run_dir", "s3://bucket/a b", "--gpus", "2", "--shm", "256"]
    assert "--preflight" not in train(run_dir="s3://bucket/a").roles[0].args[1]
