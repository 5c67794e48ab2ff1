"""A user's own folder, far from this repository: their module, their data, and the installed package."""

import re
import sys
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commands.new.project import write_project
from pipeline.run.run_dir import RECEIPT, RunDir
from tests.support.commands import ROOT, Ended, command

CONFIG = "configs/train.yaml"
Run = Callable[..., Ended]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What `python -m pipeline new` writes."""
    write_project(tmp_path / "project", "cube", "0.1.0", "")
    return tmp_path / "project"


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which this checkout is installed, as far as TorchX can tell."""
    metadata = tmp_path / "installed" / "torchx_lightning_pipeline-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    text = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in groups.items()
    )
    (metadata / "entry_points.txt").write_text(text)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torchx-lightning-pipeline\nVersion: 0.1.0\n")
    return {"PYTHONPATH": f"{metadata.parent}:{ROOT}"}


def test_torchx_knows_the_components_by_name_from_any_folder_beside_its_own(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    ended = command("torchx", "builtins", cwd=tmp_path, env=installed)
    assert ended.status == 0, ended.text
    known = set(re.findall(r"^ *\d+\. (\S+)$", ended.out, re.MULTILINE))
    assert {"train", "evaluate", "predict", "dist.ddp", "utils.echo"} <= known
    assert not {name for name in known if "_" in name}, "no helper is taken for a component"
    ended = command(
        *("torchx", "run", "--dryrun", "-s", "local_cwd", "train", "--run_dir", "runs/x", "--config", "cube.yaml"),
        cwd=tmp_path,
        env=installed,
    )
    assert ended.status == 0, ended.text
    shown = re.sub(r"'\n\s*'", "", ended.out)  # it is broken into lines
    assert "-m pipeline fit --config cube.yaml --run_dir runs/x" in shown


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_new_project_is_trained_and_evaluated_by_the_driver(project: Path, installed: dict[str, str]) -> None:
    ended = command(
        *(sys.executable, "-m", "components.launch", "--config", CONFIG, "--run_dir", "runs/cube", "--cpu", "1"),
        cwd=project,
        env=installed,
        timeout=150,
    )
    assert ended.status == 0, ended.text
    receipt = RunDir(str(project / "runs" / "cube")).read_json(RECEIPT)
    assert receipt is not None
    assert receipt["samples_scored"] == receipt["samples_expected"] == 400


def test_where_torchx_is_missing_the_driver_says_what_to_install(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = tmp_path / "bare" / "bin" / "python"
    ended = command(python, "-m", "components.launch", "--run_dir", "r", cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert ended.status == 2
    assert ended.err == (
        "error: TorchX is not installed in this environment: pip install 'torchx-lightning-pipeline[launch]'\n"
    )


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_what_torchx_starts_is_this_program_also_beside_a_pipeline_of_the_users_own(
    project: Path, installed: dict[str, str]
) -> None:
    (project / "pipeline").mkdir()
    for stage, file in ((("train", "--config", CONFIG), "pipeline.py"), (("evaluate",), "pipeline/__init__.py")):
        (project / file).write_text("raise SystemExit('this is mine')\n")
        run = ("torchx", "run", "-s", "local_cwd", stage[0], "--run_dir", "runs/cube", "--cpu", "1", *stage[1:])
        ended = command(*run, cwd=project, env=installed, timeout=150)
        assert ended.status == 0, ended.text
    receipt = RunDir(str(project / "runs" / "cube")).read_json(RECEIPT)
    assert receipt is not None
    assert receipt["samples_scored"] == receipt["samples_expected"] == 400


@pytest.mark.parametrize(("name", "file"), [("pipeline", "pipeline.py"), ("k8s", "k8s/__init__.py")])
def test_a_module_of_the_users_own_that_hides_one_of_ours_is_named(tmp_path: Path, name: str, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("")
    ended = command(
        *(sys.executable, "-m", "components.launch", "--run_dir", "r"), cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}
    )
    assert ended.status == 2
    assert ended.err == (
        f"error: {tmp_path / file} hides the package {name!r} of this program, {ROOT / name}: give yours another name\n"
    )
