"""The image: what is in it, what is not, and that any user can run it."""

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import docker
import pytest

from pipeline.commands.new.project import write_project
from pipeline.run.run_dir import RECEIPT, RunDir
from tests.support.commands import ROOT, command
from tests.support.containers import IMAGE

NAME = "torchx-lightning-pipeline"
EVERYTHING = """
import importlib, pkgutil, pipeline, sys
names = [m.name for m in pkgutil.walk_packages(pipeline.__path__, "pipeline.") if not m.name.endswith("__main__")]
for name in names + sys.argv[1].split(","):
    importlib.import_module(name)
import torch, getpass
assert torch.distributed.is_gloo_available()
assert torch.version.cuda is None or torch.distributed.is_nccl_available()
print(len(names), torch.version.cuda, getpass.getuser())
"""
PACKAGES = "fsspec,lightning,numpy,obstore,s3fs,tensorboard,torch,torchmetrics,yaml"


def test_any_user_can_import_all_of_it_on_a_read_only_root_without_network(
    run_in: Callable[..., str],
) -> None:
    modules, cuda, user = run_in("python", "-c", EVERYTHING, PACKAGES).split()
    assert int(modules) > 60
    assert user == "pipeline"
    assert cuda == "None" or cuda.startswith("13."), "its driver is what the base image asks for"


def test_it_trains_and_evaluates_as_any_user_on_a_read_only_root_without_network(run_in: Callable[..., str]) -> None:
    message = run_in(
        "sh",
        "-c",
        "python -m pipeline fit --config pipeline/configs/digits.yaml --run_dir /tmp/run --trainer.max_epochs=1"
        " && python -m pipeline test --run_dir /tmp/run",
        stderr=True,
    )
    assert "360 of 360 test samples scored" in message


def test_it_holds_no_compiler_no_torchx_no_cache_and_nothing_that_can_be_written(run_in: Callable[..., str]) -> None:
    assert run_in("sh", "-c", "command -v gcc cc c++ make ld torchx || true") == ""
    packages = {each["name"].lower() for each in json.loads(run_in("pip", "list", "--format", "json"))}
    assert not packages & {"torchx", "torchx-nightly", "moto", "pytest", "mypy"}
    caches = "find /root/.cache /var/cache/apt /var/lib/apt/lists /tmp -type f 2>/dev/null || true"
    assert run_in("sh", "-c", caches, user="0", tmpfs={}) == ""
    writable = "find / -xdev -type d -writable -not -path '/proc/*' 2>/dev/null || true"
    assert set(run_in("sh", "-c", writable, read_only=False, tmpfs={}).split()) <= {"/tmp", "/var/tmp", "/run/lock"}


def test_its_code_is_compiled_and_readable(run_in: Callable[..., str]) -> None:
    assert run_in("sh", "-c", "find /app ! -perm -o=r") == ""
    sources = run_in("sh", "-c", "find /app -name '*.py' | wc -l")
    assert run_in("sh", "-c", "find /app -name '*.pyc' | wc -l") == sources


def test_no_secret_of_the_build_is_left_in_it(engine: docker.DockerClient) -> None:
    image = engine.images.get(IMAGE)
    told = json.dumps([image.attrs["Config"], image.history()])
    assert "/run/secrets/" in told, "its lines name them"
    found = engine.containers.run(IMAGE, ["find", "/run/secrets", "-type", "f"], user="0", remove=True, stderr=True)
    assert b"No such file" in found or not found
    for word in ("PIP_INDEX_URL=", "://[^ ]*@"):
        assert not re.search(word, told)


def test_its_labels_name_version_and_revision(engine: docker.DockerClient) -> None:
    labels = engine.images.get(IMAGE).labels
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert labels["org.opencontainers.image.version"] == version("torchx-lightning-pipeline")
    assert labels["org.opencontainers.image.revision"].startswith(revision.strip())
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", labels["org.opencontainers.image.created"])


def test_its_list_of_packages_is_what_is_installed_and_what_is_pinned(run_in: Callable[..., str]) -> None:
    listed = json.loads(run_in("sh", "-c", "cat /opt/venv/sbom.cdx.json; echo"))
    assert listed["bomFormat"] == "CycloneDX"
    found = {_plain(each["name"]): each["version"] for each in listed["components"]}
    installed = {
        _plain(each["name"]): each["version"] for each in json.loads(run_in("pip", "list", "--format", "json"))
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert installed.pop(project["name"]) == project["version"], "a package among them, to whoever asks pip"
    assert found == installed
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", run_in("cat", "/opt/venv/constraints.txt"), re.MULTILINE))
    pinned = {_plain(name): at for name, at in pins.items()}
    for name, at in found.items():
        assert pinned.get(name) == at.partition("+")[0], name


def test_without_a_cpu_wheel_the_pins_bring_torch_with_cuda_and_nccl(tmp_path: Path) -> None:
    ended = command("python", "docker/requirements.py", "cuda", tmp_path, cwd=ROOT)
    assert ended.status != 0, "beside pyproject.toml only"
    for name in ("pyproject.toml", "constraints.txt", "docker/requirements.py"):
        (tmp_path / Path(name).name).write_text((ROOT / name).read_text())
    assert command("python", tmp_path / "requirements.py", "cuda", tmp_path / "wanted").status == 0
    wanted, report = tmp_path / "wanted", tmp_path / "report.json"
    ended = command(
        *("python", "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", report),
        *("--only-binary=:all:", "-c", wanted / "constraints.txt", "-r", wanted / "requirements.txt"),
        # No wheels of this machine's own.
        env={"PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null"},
        timeout=110,
    )
    assert ended.status == 0, ended.text
    found = {_plain(one["metadata"]["name"]): one["metadata"] for one in json.loads(report.read_text())["install"]}
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (wanted / "constraints.txt").read_text(), re.MULTILINE))
    pinned = {_plain(name): at for name, at in pins.items()}
    assert "+cpu" not in found["torch"]["version"]
    assert {"nvidia-nccl-cu13", "nvidia-cudnn-cu13", "triton"} <= found.keys()
    assert {name: one["version"] for name, one in found.items()} == {name: pinned[name] for name in found}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.timeout(240)
def test_a_new_project_builds_its_image_and_trains_in_two_containers_of_it(
    engine: docker.DockerClient, tmp_path: Path, run_in: Callable[..., str]
) -> None:
    project = tmp_path / "project"
    write_project(project, "cube", version(NAME), "")
    (project / "runs").mkdir()
    client = os.environ.get("DOCKER") or "docker"
    image = ("IMAGE=cube:test", f"BASE={IMAGE}", f"DOCKER={client}")
    offline = {"DOCKER_BUILDKIT": "1", "BUILD_ARGS": "--network none"}  # the image has all that it needs
    ended = command("make", "image", *image, cwd=project, env=offline)
    assert ended.status == 0, ended.text
    try:
        mounts = f"--memory 1500 --mounts type=bind,src={project}/runs,dst=/runs"
        launch = ("SCHEDULER=local_docker", "RUN_DIR=/runs/cube", f"LAUNCH={mounts}", "ARGS=--trainer.max_epochs=2")
        ended = command("make", "pipeline", *image, *launch, cwd=project, timeout=150)
        assert ended.status == 0, ended.text
        receipt = RunDir(str(project / "runs/cube")).read_json(RECEIPT)
        assert receipt is not None
        assert receipt["samples_scored"] == receipt["samples_expected"] == 400
        assert run_in("python", "-m", "pipeline", "--version", image="cube:test").endswith(f" {version(NAME)}\n")
        assert "No broken requirements" in run_in("pip", "check", image="cube:test")
    finally:
        engine.images.remove("cube:test", force=True)
