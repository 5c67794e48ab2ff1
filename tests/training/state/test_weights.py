"""A fit starts from the weights of another training, wherever they are and whatever they are called there."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import lightning.pytorch as pl
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir
from pipeline.training.state.weights import InitialWeights
from tests.support.commands import Ended, assert_one_message, torchrun
from tests.support.models import Own, Regression, Rows
from tests.support.resumes import state
from tests.support.runs import FIT

App = Callable[..., Ended]
STAYS = (*FIT, "--model.learning_rate=0", "--trainer.max_epochs=1")
"""A fit that changes no weight: what it saves is what it started from."""


class Headed(Regression):
    """The regression with another head, of `width` numbers, and a name of its own for each part."""

    def __init__(self, width: int = 1, strict: bool = True) -> None:
        super().__init__()
        self.save_hyperparameters({"learning_rate": 0.0})
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.head = nn.Linear(8, width)
        self.strict_loading = strict

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)).mean(1, keepdim=True)


class Wrapped(Regression):
    """The regression's layers under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"learning_rate": 0.0})
        self.net = self.layers
        del self.layers

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BuiltLate(Regression):
    """Makes its layers where Lightning says that large models should."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"learning_rate": 0.0})
        self.layers = None  # type: ignore[assignment]

    def configure_model(self) -> None:
        if self.layers is None:
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 1))


class LooksAtItsWeights(Regression):
    """Needs the weights when it makes its optimizer, as training towards the pretrained ones does."""

    def configure_optimizers(self) -> Any:
        self.anchor = float(self.layers[0].weight.sum())
        return super().configure_optimizers()

    def on_train_end(self) -> None:
        print(f"anchor {self.anchor:.6f}")


@pytest.fixture(scope="module")
def pretrained() -> dict[str, Tensor]:
    """The weights of a regression that no seed of a fit gives."""
    generator = torch.Generator().manual_seed(99)
    return {name: torch.randn(value.shape, generator=generator) for name, value in Regression().state_dict().items()}


def lightning_checkpoint(path: Path, weights: dict[str, Tensor]) -> None:
    """Have plain Lightning train for three steps, and put the weights into what it saved."""
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_steps=3, default_root_dir=path.parent, **quiet)
    trainer.fit(Regression(), Own())
    trainer.save_checkpoint(path)
    torch.save({**torch.load(path, weights_only=True), "state_dict": weights}, path)


FILES: dict[str, Callable[[Path, dict[str, Tensor]], object]] = {
    "a state_dict": lambda path, weights: torch.save(weights, path),
    "the older form": lambda path, weights: torch.save(weights, path, _use_new_zipfile_serialization=False),
    "a training script's": lambda path, weights: torch.save({"epoch": 3, "state_dict": weights, "best": 0.1}, path),
    "a detector's": lambda path, weights: torch.save({"model": weights, "optimizer": {"state": {}}}, path),
    "from DDP": lambda path, weights: torch.save({f"module.{name}": each for name, each in weights.items()}, path),
    "compiled": lambda path, weights: torch.save({f"_orig_mod.{name}": each for name, each in weights.items()}, path),
    "compiled, in a module": lambda path, weights: torch.save(
        {f"model._orig_mod.{name}": each for name, each in weights.items()}, path
    ),
    "safetensors": lambda path, weights: save_file(weights, path),
    "plain Lightning's": lightning_checkpoint,
    "in bfloat16": lambda path, weights: torch.save({name: each.bfloat16() for name, each in weights.items()}, path),
}


@pytest.mark.parametrize("kind", FILES)
def test_weights_in_every_kind_of_file_are_taken(
    tmp_path: Path, pretrained: dict[str, Tensor], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    FILES[kind](tmp_path / "theirs", pretrained)
    model = Regression()
    with caplog.at_level("INFO"):
        InitialWeights(str(tmp_path / "theirs")).load_into(model)
    assert f"weights: 4 of the model's 4 tensors taken from {tmp_path / 'theirs'}" in caplog.text
    assert ("4 cast bfloat16 -> float32" in caplog.text) == (kind == "in bfloat16")
    for name, value in model.state_dict().items():
        expected = pretrained[name].bfloat16().float() if kind == "in bfloat16" else pretrained[name]
        assert torch.equal(value, expected), name


def test_only_weights_are_taken_and_steps_epochs_and_optimizers_begin_at_0(
    app: App, tmp_path: Path, pretrained: dict[str, Tensor]
) -> None:
    lightning_checkpoint(tmp_path / "theirs.ckpt", pretrained)
    ended = app(*STAYS, "--weights", tmp_path / "theirs.ckpt", "--run_dir", tmp_path / "run")
    assert ended.status == 0, ended.err
    found = state(str(tmp_path / "run"))
    assert all(torch.equal(found["state_dict"][name], value) for name, value in pretrained.items())
    assert (found["global_step"], found["epoch"]) == (7, 1)
    assert {int(each["step"]) for each in found["optimizer_states"][0]["state"].values()} == {7}


def test_weights_come_from_every_storage(app: App, storage: str, tmp_path: Path, pretrained: dict[str, Tensor]) -> None:
    file = io.BytesIO()
    torch.save(pretrained, file)
    with fsspec.open(f"{storage}/theirs.pt", "wb", auto_mkdir=True) as remote:
        remote.write(file.getvalue())
    ended = app(*STAYS, "--weights", f"{storage}/theirs.pt", "--run_dir", tmp_path / "run")
    assert ended.status == 0, ended.err
    assert torch.equal(state(str(tmp_path / "run"))["state_dict"]["layers.0.weight"], pretrained["layers.0.weight"])


def test_a_run_directory_stands_for_its_best_checkpoint(app: App, storage: str, tmp_path: Path) -> None:
    more = ("--data.val=tests.support.models.Rows", "--checkpoints.monitor=val_loss", "--checkpoints.mode=max")
    assert app(*FIT, *more, "--run_dir", storage).status == 0
    run = RunDir(storage)
    best = torch.load(io.BytesIO(run.read(RunDir.checkpoint(7)) or b""), weights_only=True)["state_dict"]
    for at, weights in enumerate((storage, run.url_of(RunDir.checkpoint(7)))):
        ended = app(*STAYS, "--weights", weights, "--run_dir", tmp_path / f"{at}")
        assert ended.status == 0, ended.err
        assert run.url_of(RunDir.checkpoint(7)) in ended.err
        found = state(str(tmp_path / f"{at}"))["state_dict"]
        assert all(torch.equal(found[name], best[name]) for name in best)


def test_a_damaged_checkpoint_of_another_run_is_no_start(app: App, tmp_path: Path) -> None:
    assert app(*STAYS, "--run_dir", tmp_path / "first").status == 0
    path = tmp_path / "first" / RunDir.checkpoint(7)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert_one_message(app(*STAYS, "--weights", tmp_path / "first", "--run_dir", tmp_path / "run"), "is expected of")


@pytest.mark.parametrize("index", ["model.safetensors.index.json", ""])
def test_weights_in_several_files_are_put_together(
    app: App, tmp_path: Path, pretrained: dict[str, Tensor], index: str
) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    names = {name: f"model-{at % 2}.safetensors" for at, name in enumerate(pretrained)}
    for file in set(names.values()):
        save_file({name: pretrained[name] for name in names if names[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    ended = app(*STAYS, "--weights", folder / index, "--run_dir", tmp_path / "run")
    assert ended.status == 0, ended.err
    found = state(str(tmp_path / "run"))["state_dict"]
    assert all(torch.equal(found[name], value) for name, value in pretrained.items())


def test_a_prefix_that_all_names_differ_by_is_matched_and_said(
    app: App, tmp_path: Path, pretrained: dict[str, Tensor]
) -> None:
    torch.save({f"model.{name}": value for name, value in pretrained.items()}, tmp_path / "lightning.pt")
    ended = app(*STAYS, "--weights", tmp_path / "lightning.pt", "--run_dir", tmp_path / "bare")
    assert ended.status == 0, ended.err
    assert "names model.* taken as *" in ended.err
    fit = ("fit", "--model=tests.training.state.test_weights.Wrapped", *STAYS[2:-2], "--trainer.max_epochs=1")
    for at, old in enumerate(("", "module.model.")):
        theirs = {old + name.removeprefix("layers."): value for name, value in pretrained.items()}
        torch.save(theirs, tmp_path / f"{at}.pt")
        ended = app(*fit, "--weights", tmp_path / f"{at}.pt", "--run_dir", tmp_path / f"run-{at}")
        assert ended.status == 0, ended.err
        assert f"names {old}* taken as net.*" in ended.err
        assert torch.equal(
            state(str(tmp_path / f"run-{at}"))["state_dict"]["net.3.weight"], pretrained["layers.3.weight"]
        )


def headed(width: int, strict: bool = True) -> tuple[str, ...]:
    more = (f"--model.width={width}", f"--model.strict={strict}", "--trainer.max_epochs=1")
    return ("fit", "--model=tests.training.state.test_weights.Headed", *STAYS[2:-2], *more)


def test_a_changed_head_is_refused_with_all_that_differs_at_once(app: App, tmp_path: Path) -> None:
    theirs = {**Headed(3).state_dict(), "old.weight": torch.ones(1)}
    del theirs["head.bias"]
    torch.save(theirs, tmp_path / "theirs.pt")
    ended = app(*headed(5), "--weights", tmp_path / "theirs.pt", "--run_dir", tmp_path / "run")
    assert ended.status == 2
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert [line.partition("theirs.pt' ")[2].partition(". ")[0] for line in lines] == [
        "lacks head.bias",
        "also has old.weight",
        "has another shape or type of head.weight (3x8 float32 in the file, 5x8 float32 in the model)",
    ]
    assert all("--weights_allow 'head.*,old.*'" in line for line in lines)
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    assert not (tmp_path / "run" / "fit.yaml").exists(), "a mistake must not replace a good configuration"


def test_a_changed_head_that_is_allowed_keeps_the_models_own_values(app: App, tmp_path: Path) -> None:
    theirs = Headed(3).state_dict()
    torch.save(theirs, tmp_path / "theirs.pt")
    assert app(*headed(5), "--run_dir", tmp_path / "fresh").status == 0
    ended = app(
        *(*headed(5), "--weights", tmp_path / "theirs.pt", "--weights_allow", "head.*"),
        *("--run_dir", tmp_path / "run"),
    )
    assert ended.status == 0, ended.err
    assert "weights: 2 of the model's 4 tensors taken" in ended.err
    assert "so as the model initialized them: head.weight (3x8 float32 in the file, 5x8" in ended.err
    found, fresh = state(str(tmp_path / "run"))["state_dict"], state(str(tmp_path / "fresh"))["state_dict"]
    assert torch.equal(found["layers.0.weight"], theirs["layers.0.weight"])
    assert torch.equal(found["head.weight"], fresh["head.weight"])


def test_a_module_that_is_not_strict_takes_what_there_is(app: App, tmp_path: Path) -> None:
    theirs = {name: value for name, value in Headed().state_dict().items() if not name.startswith("head")}
    torch.save(theirs, tmp_path / "theirs.pt")
    ended = app(*headed(1, strict=False), "--weights", tmp_path / "theirs.pt", "--run_dir", tmp_path / "run")
    assert ended.status == 0, ended.err
    assert "not in the file, so as the model initialized them: head.weight, head.bias" in ended.err
    assert app(*headed(1), "--weights", tmp_path / "theirs.pt", "--run_dir", tmp_path / "strict").status == 2


def test_weights_of_another_model_are_refused_whatever_is_allowed(app: App, tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.ones(3)}, tmp_path / "theirs.pt")
    ended = app(*STAYS, "--weights", tmp_path / "theirs.pt", "--weights_allow", "*", "--run_dir", tmp_path / "run")
    assert ended.status == 2
    assert "fits no tensor of the model. The file has conv.weight; the model has layers.0.weight" in ended.err


def test_weights_are_there_before_optimizers_and_after_configure_model(
    app: App, tmp_path: Path, pretrained: dict[str, Tensor]
) -> None:
    torch.save(pretrained, tmp_path / "theirs.pt")
    for model in ("BuiltLate", "LooksAtItsWeights"):
        run, name = tmp_path / model, f"--model=tests.training.state.test_weights.{model}"
        ended = app("fit", name, *FIT[2:], "--weights", tmp_path / "theirs.pt", "--run_dir", run)
        assert ended.status == 0, ended.err
    assert f"anchor {float(pretrained['layers.0.weight'].sum()):.6f}" in ended.out
    assert torch.equal(state(str(tmp_path / "BuiltLate"))["state_dict"]["layers.0.bias"], pretrained["layers.0.bias"])


def test_a_resume_goes_on_from_the_runs_checkpoint_and_the_weights_stay_on_record(
    app: App, tmp_path: Path, pretrained: dict[str, Tensor]
) -> None:
    theirs, run = tmp_path / "theirs.pt", tmp_path / "run"
    torch.save(pretrained, theirs)
    assert app(*FIT, "--weights", theirs, "--run_dir", run, "--trainer.max_epochs=3").status == 0
    straight = state(str(run))
    run = tmp_path / "two"
    assert app(*FIT, "--weights", theirs, "--run_dir", run, "--trainer.max_epochs=2").status == 0
    ended = app(*FIT, "--weights", theirs, "--run_dir", run, "--trainer.max_epochs=2")
    assert "nothing to train" in ended.err
    theirs.unlink()
    ended = app(*FIT, "--weights", theirs, "--run_dir", run, "--trainer.max_epochs=3")
    assert ended.status == 0, ended.err
    assert f"weights={str(theirs)!r} is ignored: the run resumes from its checkpoint of step 14" in ended.err
    resumed = state(str(run))
    assert all(torch.equal(resumed["state_dict"][name], value) for name, value in straight["state_dict"].items())
    assert app(*FIT, "--run_dir", run, "--trainer.max_epochs=4").status == 0
    assert yaml.safe_load((run / "fit.yaml").read_text())["weights"] == str(theirs)
    more = ("--run_dir", run, "--data.val=tests.support.models.Rows")
    ended = app("validate", "--config", run / "fit.yaml", *more)
    assert ended.status == 0, ended.err
    assert_one_message(app("validate", *more, "--weights", "x.pt"), "weights is a flag of fit alone")


def test_a_start_that_was_killed_before_its_first_save_takes_the_weights_again(
    app: App, tmp_path: Path, pretrained: dict[str, Tensor]
) -> None:
    torch.save(pretrained, tmp_path / "theirs.pt")
    fit = (*STAYS, "--weights", tmp_path / "theirs.pt", "--run_dir", tmp_path / "run")
    assert app(*fit, "--trainer.max_epochs=0").status == 0
    assert app(*fit).status == 0
    assert torch.equal(state(str(tmp_path / "run"))["state_dict"]["layers.0.bias"], pretrained["layers.0.bias"])


@pytest.mark.timeout(120)
def test_all_ranks_start_from_the_weights(tmp_path: Path, pretrained: dict[str, Tensor]) -> None:
    torch.save({f"module.{name}": value for name, value in pretrained.items()}, tmp_path / "theirs.pt")
    more = ("--weights", tmp_path / "theirs.pt", "--run_dir", tmp_path / "run")
    ended = torchrun(2, "-m", "pipeline", *STAYS, *more)
    assert ended.status == 0, ended.text
    assert ended.err.count("4 of the model's 4 tensors taken") == 1, "rank 0 speaks for all"
    found = state(str(tmp_path / "run"))["state_dict"]
    assert all(torch.equal(found[name], value) for name, value in pretrained.items())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--weights", "x.pt", "--ckpt_path", "y.ckpt"), "both say what to start from"),
        (("--weights_allow", "head.*"), "weights_allow='head.*'"),
        (("--weights", ""), "weights='' must be the URL"),
        (("--weights", "nowhere.pt"), "weights='nowhere.pt' does not exist"),
        (("--weights", "tests"), "weights='tests' is a folder"),
        (("--weights", "nosuch://b/x.pt"), "weights='nosuch://b/x.pt'"),
    ],
)
def test_a_mistake_is_found_before_anything_is_built(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], words: str
) -> None:
    def built(*_: object) -> None:
        raise AssertionError("a dataset was read for a command that cannot run")

    monkeypatch.setattr(Rows, "__init__", built)
    assert_one_message(app(*FIT, *flags, "--run_dir", tmp_path / "run"), words)


class Tied(nn.Module):
    """A language model's two ends, which are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def load(path: Path, module: nn.Module, theirs: Any, allowed: str | None = None) -> None:
    torch.save(theirs, path)
    InitialWeights(str(path), allowed=allowed).load_into(module)


def test_tied_weights_need_to_be_there_once(tmp_path: Path) -> None:
    module = Tied()
    load(tmp_path / "x", module, {"embed.weight": torch.ones(5, 3)})
    assert torch.equal(module.head.weight, torch.ones(5, 3))
    assert module.head.weight is module.embed.weight


def test_frozen_weights_and_buffers_are_loaded_and_stay_frozen(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module[0].requires_grad_(False)
    theirs = {**module.state_dict(), "1.running_mean": torch.full((2,), 7.0), "0.bias": torch.ones(2)}
    load(tmp_path / "x", module, theirs)
    assert module[1].running_mean.tolist() == [7.0, 7.0]
    assert (module[0].bias.tolist(), module[0].bias.requires_grad) == ([1.0, 1.0], False)


def test_what_torch_reads_of_older_versions_is_read(tmp_path: Path) -> None:
    older = nn.utils.weight_norm(nn.Linear(2, 2))
    module = parametrizations.weight_norm(nn.Linear(2, 2))
    load(tmp_path / "x", module, older.state_dict())
    x = torch.ones(1, 2)
    assert torch.allclose(module(x), older(x))


def test_numbers_of_another_kind_are_not_cast(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"another shape or type of 0\.bias \(2 int8 in the file, 2 float32"):
        load(tmp_path / "x", module, {**module.state_dict(), "0.bias": torch.ones(2, dtype=torch.int8)})


def test_a_backbone_alone_is_found_under_its_name(tmp_path: Path) -> None:
    module = nn.ModuleDict({"backbone": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)), "head": nn.Linear(3, 1)})
    theirs = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    load(tmp_path / "x", module, theirs.state_dict(), "head.*")
    assert torch.equal(module["backbone"][1].weight, theirs[1].weight)


def test_where_two_parts_would_fit_none_is_chosen(tmp_path: Path) -> None:
    module = nn.ModuleDict({"student": nn.Linear(2, 2), "teacher": nn.Linear(2, 2)})
    with pytest.raises(UserError, match="fits no tensor of the model"):
        load(tmp_path / "x", module, nn.Linear(2, 2).state_dict(), "*")
