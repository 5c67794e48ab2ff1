"""Imports point one way, and each side runs without what only the other one needs."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.commands import ROOT, without

LAYERS = (
    ("errors",),
    ("process",),
    ("data", "run", "agent"),
    ("cache",),
    ("formats",),
    ("checkpoint",),
    ("training",),
    ("config",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""Of `pipeline/`, from the ground up: a folder imports what lies below it, and nothing beside or above it."""
INSIDE = (
    ("compat", "save_policy", "stop_vote"),
    ("step", "inspection"),
    ("trainer",),
    ("state", "results", "logs", "telemetry"),
    ("loaders",),
    ("trainer_state", "memory_checkpoints"),
    ("monitored_metric",),
    ("session",),
    (
        "epoch_loop",
        "evaluation_loop",
    ),
    ("hooks", "checkpoints", "checkpoint_io", "nonfinite"),
)
"""Of `pipeline/training/`, in the same way."""
OUTSIDE = {"examples": ("cache", "data")}
"""Folders that stand where a user's own code does, and what of the house that imports."""


def test_the_app_runs_without_torchx() -> None:
    without(
        ("torchx", "kubernetes", "components"), "from pipeline.cli import main; assert main(['fit', '--nope']) == 2"
    )


def test_the_submitter_runs_without_torch_and_lightning() -> None:
    without(
        ("torch", "lightning", "jsonargparse", "numpy"),
        "import k8s.manifests, components.launch as l; assert l.main(['--run_dir', 'memory://x']) == 2",
    )


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of `pipeline/` by its dotted name, without that of the package."""
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        if "template" in path.parts:  # a project of a user's own
            continue
        name = ".".join(path.relative_to(ROOT / "pipeline").with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


def imported(path: Path, known: set[str], annotations: bool = True) -> set[str]:
    """The modules of `pipeline/` that one of them imports, also within its functions and for its annotations alone."""
    found = set()
    tree = ast.parse(path.read_text())
    if not annotations:
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    ours = {name.removeprefix("pipeline.") for name in found if name.startswith("pipeline.")}
    return {name for name in ours if name in known}


@pytest.mark.parametrize(("root", "layers"), [("", LAYERS), ("training.", INSIDE)], ids=["pipeline", "training"])
def test_imports_point_down_the_layers(root: str, layers: tuple[tuple[str, ...], ...]) -> None:
    floor = {name: height for height, names in enumerate(layers) for name in names}
    known = {name for name, _ in modules()}
    wrong = []
    for name, path in modules():
        if not name.startswith(root) or name in (f"{root}__init__", root.rstrip(".")):
            continue
        folder = name.removeprefix(root).split(".")[0]
        for other in sorted(imported(path, known)):
            below = other.removeprefix(root).split(".")[0]
            if not other.startswith(root) or folder == below:
                continue
            down = below in OUTSIDE[folder] if folder in OUTSIDE else floor[below] < floor[folder]
            if not down:
                wrong.append(f"{name} imports {other}")
    assert not wrong, "these arrows point up or aside: " + "; ".join(wrong)


def test_no_imports_form_a_cycle() -> None:
    known = {name for name, _ in modules()}
    graph = {name: imported(path, known, annotations=False) - {name} for name, path in modules()}
    # A package's __init__ re-exports its modules, which name the package only as the folder that they lie in.
    packages = {name for name, path in modules() if path.name == "__init__.py"}
    graph = {name: {other for other in others if other not in packages} for name, others in graph.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' -> '.join(error.args[1])}")


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
