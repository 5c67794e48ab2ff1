"""A checkpoint of a model that the command line built loads where neither this project nor jsonargparse is."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.commands import BLOCK, ROOT, Ended, command

App = Callable[..., Ended]

MODULE = """
from enum import Enum
import lightning.pytorch as pl
import torch
from torch import nn

class Kind(Enum):
    RELU = "relu"
    TANH = "tanh"

class Base(pl.LightningModule):
    def training_step(self, batch, batch_idx):
        return self.layer(batch[0][:, :2]).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class Plain(Base):
    def __init__(self, width: int = 3, betas: tuple[float, float] = (0.9, 0.99), names: list[str] | None = None):
        super().__init__()
        assert isinstance(betas, tuple) and isinstance(width, int), (betas, width)
        self.save_hyperparameters()
        self.layer = nn.Linear(2, width)

class Keywords(Base):
    def __init__(self, width: int = 3, **more):
        super().__init__()
        assert not set(more) - {"depth"}, more
        self.save_hyperparameters()
        self.layer = nn.Linear(2, width)

class NoneSaved(Base):
    def __init__(self, width: int = 3):
        super().__init__()
        self.layer = nn.Linear(2, width)

class Nested(Base):
    def __init__(self, layer: nn.Module, width: int = 3):
        super().__init__()
        assert isinstance(layer, nn.Module), layer
        self.save_hyperparameters()
        self.layer = layer

class NestedIgnored(Base):
    def __init__(self, layer: nn.Module, width: int = 3):
        super().__init__()
        self.save_hyperparameters(ignore=["layer"])
        self.layer = layer

class WithEnum(Base):
    def __init__(self, kind: Kind = Kind.RELU):
        super().__init__()
        assert isinstance(kind, Kind), kind
        self.save_hyperparameters()
        self.layer = nn.Linear(2, 3)
"""
LAYER = ("--model.layer=torch.nn.Linear", "--model.layer.in_features=2", "--model.layer.out_features=3")
MODELS: dict[str, tuple[str, ...]] = {
    "Plain": ("--model.width=5", "--model.betas=[0.5,0.6]"),
    "Keywords": ("--model.width=5", "--model.dict_kwargs.depth=7"),
    "NoneSaved": ("--model.width=3",),
    "NestedIgnored": LAYER,
}
NEEDING = {"Nested": LAYER, "WithEnum": ("--model.kind=TANH",)}
"""With arguments that JSON cannot say."""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module of a project that knows nothing of this one."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "foreign_models.py").write_text(MODULE)
    return folder


@pytest.fixture
def train(app: App, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train a model of theirs by the command line, and return its checkpoint."""
    monkeypatch.syspath_prepend(str(theirs))

    def run(name: str, *flags: str) -> Path:
        model = ("--model", f"foreign_models.{name}", *flags)
        limits = ("--trainer.max_steps=1", "--trainer.enable_model_summary=false", "--run_dir", tmp_path / name)
        ended = app("fit", *model, "--data=tests.support.models.Own", *limits)
        assert ended.status == 0, ended.text
        return max((tmp_path / name / "checkpoints").glob("*.ckpt"))

    return run


def load(theirs: Path, checkpoints: dict[str, str], program: str, blocked: tuple[str, ...]) -> None:
    """Load checkpoints in a process where some packages cannot be imported, from outside of this project."""
    begin = f"import sys; sys.path[:] = [{str(theirs)!r}, *(p for p in sys.path if p not in ({str(ROOT)!r}, ''))]\n"
    program = f"import foreign_models as m, torch\npaths = {checkpoints!r}\n{program}"
    ended = command(sys.executable, "-c", begin + BLOCK.format(names=blocked) + program, cwd=theirs)
    assert ended.status == 0, ended.text


def test_checkpoints_load_without_this_project_and_without_jsonargparse(
    train: Callable[..., Path], theirs: Path
) -> None:
    program = """
for name, path in paths.items():
    given = {"layer": torch.nn.Linear(2, 3)} if name == "NestedIgnored" else {}
    model = getattr(m, name).load_from_checkpoint(path, **given)
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert saved and all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    assert "_instantiator" not in model.hparams
    if name == "Plain":
        assert (model.hparams.width, model.hparams.betas) == (5, (0.5, 0.6))
"""
    checkpoints = {name: str(train(name, *flags)) for name, flags in MODELS.items()}
    load(theirs, checkpoints, program, ("pipeline", "tests", "jsonargparse"))


@pytest.mark.parametrize("name", NEEDING)
def test_what_json_cannot_say_is_built_by_jsonargparse(train: Callable[..., Path], theirs: Path, name: str) -> None:
    import foreign_models  # type: ignore[import-not-found]

    checkpoint = train(name, *NEEDING[name])
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["_instantiator"], "without it, it fails"
    getattr(foreign_models, name).load_from_checkpoint(checkpoint)


def test_data_that_save_their_hyperparameters_load_without_jsonargparse_too(app: App, tmp_path: Path) -> None:
    ended = app(
        *("fit", "--model=tests.support.models.WithoutHyperparameters", "--data=tests.support.exported.Configured"),
        *("--data.rows=20", "--trainer.max_steps=1", "--trainer.enable_model_summary=false", "--run_dir", tmp_path),
    )
    assert ended.status == 0, ended.text
    saved = torch.load(max(tmp_path.glob("checkpoints/*.ckpt")), weights_only=True)["datamodule_hyper_parameters"]
    assert saved["rows"] == 20
    assert "_instantiator" not in saved
