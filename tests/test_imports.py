"""Imports point one way, and each side runs without what only the other one needs."""

import sys

import pytest

from tests.conftest import ROOT, command

BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {names}:
            raise ImportError(f'{{name}} is not installed here')
sys.meta_path.insert(0, Block())
"""


def without(names: tuple[str, ...], program: str) -> None:
    ended = command(sys.executable, "-c", BLOCK.format(names=names) + program)
    assert ended.status == 0, ended.text


def test_the_app_runs_without_torchx() -> None:
    without(
        ("torchx", "kubernetes", "components"), "from pipeline.cli import main; assert main(['fit', '--nope']) == 2"
    )


def test_the_submitter_runs_without_torch_and_lightning() -> None:
    without(
        ("torch", "lightning", "jsonargparse", "numpy"),
        "import k8s.manifests, components.launch as l; assert l.main(['--run_dir', 'memory://x']) == 2",
    )


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("pipeline/cli.py", "import torchx"),
        ("pipeline/cli.py", "from kubernetes import client"),
        ("pipeline/cli.py", "from components.train import train"),
        ("pipeline/cli.py", "from k8s import manifests"),
        ("pipeline/cli.py", "import pipeline.examples.digits"),
        ("components/train.py", "import torch"),
        ("components/train.py", "from lightning.pytorch import Trainer"),
        ("components/train.py", "import pipeline.cli"),
        ("k8s/pods.py", "import torch"),
    ],
)
def test_an_import_against_the_way_of_the_data_fails_the_lint(path: str, line: str) -> None:
    import subprocess

    ended = subprocess.run(
        ["ruff", "check", "--select", "TID251", "--stdin-filename", path, "-"],
        input=line + "\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert ended.returncode == 1
    assert "TID251" in ended.stdout


def test_the_example_model_knows_nothing_of_the_pipeline() -> None:
    text = (ROOT / "pipeline/examples/autoencoder.py").read_text()
    assert "import pipeline" not in text
    assert "from pipeline" not in text
