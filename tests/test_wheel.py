"""The wheel and the source distribution are complete, and a new project needs nothing but the wheel."""

import re
import shutil
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run.run_dir import RECEIPT, RunDir
from tests.support.commands import ROOT, Ended, command

pytestmark = pytest.mark.slow
Run = Callable[..., Ended]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
LEFTOVER = re.compile(r"/(__pycache__|\.\w+_cache)/")
LEFT = (".git", ".venv", "runs", "build", "dist", "wheels", "*.egg-info", "__pycache__", ".hypothesis")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `make wheel` makes of a copy of this checkout."""
    copy = tmp_path_factory.mktemp("built") / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT))
    ended = command("make", "-o", ".venv/.ready", "wheel", cwd=copy)
    assert ended.status == 0, ended.text
    assert ended.out.count("PASSED") == 2, "twine says so of both"
    assert not list(copy.glob("*.egg-info")), "nothing is left that Python would take for an installed package"
    return copy / "dist"


def wheel_in(folder: Path) -> Path:
    (found,) = folder.glob("*.whl")
    return found


def contents(wheel: Path) -> dict[str, bytes]:
    """Every file of a wheel, but for the list of them."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith(("/", "/RECORD"))}


def test_the_wheel_holds_every_file_of_the_packages(built: Path) -> None:
    packed = contents(wheel_in(built))
    for package in ("pipeline", "components", "k8s"):
        for path in (built.parent / package).rglob("*"):
            if path.is_dir() or LEFTOVER.search(str(path)) or path.name == "ruff.toml":
                continue
            assert packed[str(path.relative_to(built.parent))] == path.read_bytes()
    assert not [name for name in packed if LEFTOVER.search(name)]
    entry_points = next(text for name, text in packed.items() if name.endswith("entry_points.txt")).decode()
    for line in ("local_docker = components.local_docker:create_scheduler", "_train = components.train"):
        assert line in entry_points
    assert any(name.endswith("licenses/LICENSE") for name in packed)


def test_the_source_distribution_builds_the_same_wheel_again(built: Path, tmp_path: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path)  # its filter is newer than Python 3.11.2, and the archive is our own
    (folder,) = tmp_path.iterdir()
    for needed in ("docker/Dockerfile", "docker/build.sh", "Makefile", "constraints-dev.txt", "tests/conftest.py"):
        assert (folder / needed).exists()
    build = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path / "again", folder)
    ended = command(*build)
    assert ended.status == 0, ended.text
    assert contents(wheel_in(tmp_path / "again")) == contents(wheel_in(built))


@pytest.fixture(scope="module")
def user(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Commands of somebody who has only the wheel, in an environment of their own.

    What the wheel depends on comes from the environment of these tests, so that no index is asked.
    """
    home = tmp_path_factory.mktemp("user")
    venv.create(home / "venv", with_pip=False, symlinks=True)
    (packages,) = (home / "venv").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(each for each in sys.path if each.endswith("site-packages")))
    for script in ("torchx", "ruff"):
        here = Path(sys.executable).parent / script
        text = re.sub(rb"\A#!.*", f"#!{home}/venv/bin/python".encode(), here.read_bytes())
        (home / "venv/bin" / script).write_bytes(text)
        (home / "venv/bin" / script).chmod(0o755)

    def run(*arguments: object, cwd: Path = home, **options: object) -> Ended:
        path = f"{home}/venv/bin:/usr/local/bin:/usr/bin:/bin"
        offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_CONFIG_FILE": "/dev/null"}
        active = {"PATH": path, "VIRTUAL_ENV": f"{home}/venv", "PYTHONPATH": "", "HOME": str(home)}
        active["PYTEST_ADDOPTS"] = "-p no:kmock"  # the environment of these tests lacks what this plugin needs
        words = ("env", *(f"{name}={value}" for name, value in {**active, **offline}.items()), *arguments)
        return command(*words, cwd=cwd, timeout=300)

    ended = run("python", "-m", "pip", "install", "--no-deps", "--quiet", wheel_in(built))
    assert ended.status == 0, ended.text
    run.home = home  # type: ignore[attr-defined]
    return run


@pytest.fixture(scope="module")
def project(user: Run) -> Path:
    """A new project, set up."""
    home: Path = user.home  # type: ignore[attr-defined]
    shown = user("python", "-c", "import pipeline, components, k8s; print(pipeline.__file__, components.__file__)").out
    assert shown.count(str(home)) == 2, "the product is the wheel's"
    assert user("python", "-m", "pipeline", "--version").out == f"torchx-lightning-pipeline {VERSION}\n"
    (home / "work").mkdir()
    ended = user("python", "-m", "pipeline", "new", "cube", cwd=home / "work")
    assert ended.status == 0, ended.text
    assert ended.err.endswith("next:\n  cd cube && make setup test\n  make pipeline\n")
    project = home / "work" / "cube"
    ended = user("make", "setup", cwd=project)
    assert ended.status == 0, ended.text
    return project


@pytest.mark.timeout(400)
def test_the_tests_of_a_new_project_pass_and_one_of_them_trains_on_two_nodes(user: Run, project: Path) -> None:
    for target in ("check", "test"):
        ended = user("make", target, cwd=project)
        assert ended.status == 0, ended.text
    assert "test_two_nodes.py ." in ended.out


@pytest.mark.timeout(400)
def test_a_new_project_is_trained_evaluated_and_predicts_by_its_own_commands(user: Run, project: Path) -> None:
    ended = user("make", "pipeline", cwd=project)
    assert ended.status == 0, ended.text
    assert "test samples scored  400 of 400, once each" in ended.out
    ended = user("make", "predict", cwd=project)
    assert ended.status == 0, ended.text
    receipt = RunDir(str(project / "runs/first")).read_json(RECEIPT)
    assert receipt is not None
    assert receipt["metrics"]["test_accuracy"] > 0.95, "it learns what it is shown"
    assert list((project / "runs/first/predictions").iterdir())
    assert (project / "runs/first/report.html").exists()
    ended = user("make", "export", cwd=project)
    assert ended.status == 0, ended.text
    assert [path.name for path in (project / "runs/first/exports").glob("*.safetensors")]


@pytest.mark.timeout(400)
def test_a_new_project_compares_learning_rates_in_one_page(user: Run, project: Path) -> None:
    flags = ("GRID=model.learning_rate=0.03,0.003", "NODES=1", "ARGS=--trainer.max_epochs=1")
    ended = user("make", "sweep", *flags, cwd=project)
    assert ended.status == 0, ended.text
    assert "best val_loss" in ended.out
    assert (project / "runs/sweep/report.html").exists()


@pytest.mark.timeout(400)
def test_torchx_trains_a_new_project_and_knows_its_configuration_and_nodes(user: Run, project: Path) -> None:
    shown = user("torchx", "run", "--dryrun", "train", "--run_dir", "runs/x", cwd=project).out
    assert "fit --config configs/train.yaml" in re.sub(r"'\n\s*'", "", shown)
    assert "'num_replicas': 2" in shown
    where = "RUN_DIR=runs/second"
    for arguments in (("train", "ARGS=--trainer.max_epochs=1"), ("evaluate",)):
        ended = user("make", *arguments, where, cwd=project)
        assert ended.status == 0, ended.text
    run = RunDir(str(project / "runs/second"))
    attempt, receipt = run.read_json("attempts/0001.json"), run.read_json(RECEIPT)
    assert attempt is not None
    assert receipt is not None
    assert attempt["nodes"] == 2
    assert attempt["versions"]["pipeline"] == VERSION
    assert receipt["samples_scored"] == receipt["samples_expected"] == 400
