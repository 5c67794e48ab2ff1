"""One training step is measured as Lightning takes it, whatever the model is, and nothing of it stays."""

import random
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.demos import LightningTransformer
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel, ManualOptimBoringModel
from torch import nn

from pipeline.data.datamodule import DataModule
from pipeline.errors import UserError
from pipeline.training.inspection.step_measurement import MEASURING, StepFacts, measure_step
from tests.support.inspected import (
    Breaks,
    BringsItsOwn,
    Deep,
    EndsBadly,
    Gan,
    LanguageModel,
    Mappings,
    OfMappings,
    Plans,
    Streams,
    Transforms,
    Words,
)
from tests.support.loaders import Loaders, Trains
from tests.support.models import (
    Backboned,
    Estimating,
    LogsInEveryWay,
    Normalized,
    Optimized,
    Own,
    Regression,
    Rows,
    SkipsTheRest,
    Thorough,
)

FLOAT = 4


def measured(model: pl.LightningModule, data: Any = None, **more: Any) -> StepFacts:
    """What a step of a model takes on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {**MEASURING, "accelerator": "cpu", "max_epochs": 3, **more}
        return measure_step(pl.Trainer(**options), model, data)


class Demo(LightningTransformer):
    """Lightning's transformer, which would download its data."""

    def prepare_data(self) -> None:
        pass


def rows(batch_size: int = 32, n: int = 101) -> DataModule:
    return DataModule(train=Rows(n), batch_size=batch_size)


def test_every_number_of_a_small_model_is_the_one_on_paper() -> None:
    model = Regression()
    model.layers = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 1))
    step = measured(model, rows())
    assert (step.batch_size, step.batch_sizes, step.parameters) == (32, [[32, 4], [32, 1]], 4 * 64 + 64 + 64 + 1)
    assert step.weights == step.gradients == step.buckets == step.parameters * FLOAT
    # Adam has two moments of each parameter, and counts steps of each tensor.
    assert (step.optimizer, step.optimizers) == (2 * step.parameters * FLOAT + 4 * FLOAT, ["Adam"])
    assert step.forward_flops == 2 * 32 * (4 * 64 + 64)
    assert step.backward_flops == 2 * 32 * (4 * 64 + 2 * 64)
    # The input, ReLU's result; the prediction and the target of the loss.
    assert step.activations == 32 * (4 + 64 + 1 + 1) * FLOAT
    assert step.batch == 32 * 5 * FLOAT
    assert step.peak >= step.fixed + step.activations
    assert [layer.name for layer in step.layers] == ["", "layers", "layers.0", "layers.1", "layers.2"]
    assert step.notes == []


def test_memory_that_depends_on_the_batch_grows_with_it_and_the_other_stays() -> None:
    small, large = (measured(Regression(), rows(size)) for size in (10, 100))
    assert small.fixed == large.fixed
    assert large.activations == 10 * small.activations
    assert large.forward_flops == 10 * small.forward_flops
    assert large.peak > small.peak


@pytest.mark.parametrize("make", [Regression, Thorough, Deep])
def test_the_memory_of_another_batch_is_foretold_from_one(make: Any) -> None:
    one, other = (measured(make(), rows(size, n=1000)) for size in (40, 400))
    foretold = one.fixed + (one.peak - one.fixed) * 10
    assert 0.9 * foretold < other.peak < 1.1 * foretold


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (Thorough, rows),
        (Estimating, rows),
        (Plans, rows),
        (LogsInEveryWay, rows),
        (Normalized, rows),
        (Backboned, rows),
        (EndsBadly, rows),
        (Regression, Own),
        (Regression, Streams),
        (OfMappings, lambda: DataModule(train=Mappings(), batch_size=8)),
        (Trains, lambda: Loaders("two")),
        (Trains, lambda: Loaders("two by the shorter")),
        (Trains, lambda: Loaders("own state")),
        (Trains, lambda: Loaders("no length")),
        (BringsItsOwn, lambda: None),
        (BoringModel, BoringDataModule),
        (BoringModel, lambda: None),
        (ManualOptimBoringModel, BoringDataModule),
        (lambda: Demo(vocab_size=100), lambda: DataModule(train=Words(), batch_size=4)),
        (LanguageModel, lambda: DataModule(train=Words(), batch_size=4)),
        (Gan, rows),
    ],
)
def test_every_kind_of_model_and_data_is_measured_whole(model: Any, data: Any) -> None:
    step = measured(model(), data())
    assert step.notes == []
    assert step.batch_size > 0
    assert step.forward_flops > 0
    assert step.backward_flops > 0
    assert 0 < step.activations <= step.peak
    assert step.weights > 0
    assert step.peak >= step.weights + step.optimizer


def test_a_gan_that_optimizes_by_hand_has_the_states_of_all_its_optimizers() -> None:
    step = measured(Gan(width=1000), rows())
    assert step.optimizers == ["Adam"] * 3
    # The third one takes no step in the first batches.
    assert step.optimizer == 2 * (16 + 4 + 4000) * FLOAT + 3 * FLOAT
    assert step.gradients == (16 + 4) * FLOAT
    assert step.peak >= step.weights + step.optimizer


def test_an_optimizer_without_states_takes_no_memory() -> None:
    assert measured(Optimized(optimizer="SGD"), rows()).optimizer == 0


def test_attention_is_counted_in_a_transformer() -> None:
    step = measured(LanguageModel(), DataModule(train=Words(), batch_size=4))
    by_name = {layer.name: layer for layer in step.layers}
    # Two sequences of 16 tokens each attend to each other, in the encoder and twice in the decoder.
    assert by_name["model.transformer"].flops > by_name["model.decoder"].flops > 0
    assert by_name["model.decoder"].flops == 2 * 4 * 16 * 16 * 100


def test_activations_that_are_computed_again_take_less_memory_and_more_operations() -> None:
    kept, again = (measured(Deep(recompute), rows(100)) for recompute in (False, True))
    assert again.activations < 0.6 * kept.activations
    assert again.peak < kept.peak
    assert again.forward_flops == kept.forward_flops
    assert again.backward_flops == kept.backward_flops + kept.forward_flops


def test_lower_precision_keeps_less() -> None:
    full, mixed = (measured(Deep(), rows(100), precision=precision) for precision in ("32-true", "bf16-mixed"))
    assert mixed.activations < full.activations
    assert mixed.weights == full.weights
    assert measured(Deep(), rows(100), precision="bf16-true").weights == full.weights / 2


def test_frozen_layers_have_no_gradients() -> None:
    model = Backboned()
    model.backbone.requires_grad_(False)
    step = measured(model, rows())
    assert (
        step.gradients == sum(each.numel() for each in (*model.layers.parameters(), *model.norm.parameters())) * FLOAT
    )
    assert step.trained < step.parameters


def test_a_model_that_hinders_the_watching_is_measured_as_far_as_it_goes() -> None:
    step = measured(Transforms(), rows())
    assert len(step.notes) == 1
    assert step.notes[0].startswith("Activations and operations are not measured: RuntimeError: ")
    assert (step.peak, step.activations, step.forward_flops, step.layers) == (None, None, None, [])
    assert step.optimizer == 2 * step.weights + 4 * FLOAT


def test_random_numbers_and_loaders_are_left_as_they_were() -> None:
    data, model = rows(), Thorough()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    measured(model, data)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    assert "train_dataloader" not in vars(data)
    assert len(data.train_dataloader()) == 4


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    measured(Thorough(out=str(tmp_path / "out")), rows())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", [0, 1])
def test_what_a_training_step_raises_comes_out_as_it_is(at: int) -> None:
    with pytest.raises(KeyError, match="no such column"):
        measured(Breaks(at), rows())


@pytest.mark.parametrize("n", [0, 5])
def test_data_without_a_batch_are_told(n: int) -> None:
    loader = torch.utils.data.DataLoader(Rows(n), batch_size=8, drop_last=True)
    data = pl.LightningDataModule()
    data.train_dataloader = lambda: loader  # type: ignore[method-assign]
    with pytest.raises(UserError, match="gives no batch"):
        measured(Regression(), data)


def test_a_model_that_skips_its_steps_is_told_to_take_none() -> None:
    class Skips(SkipsTheRest):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int:
            return -1

    with pytest.raises(UserError, match="Skips takes no two training steps in an epoch"):
        measured(Skips(), rows(), max_epochs=1)


def test_a_step_without_a_loss_has_no_backward_pass() -> None:
    class NoLoss(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self(batch[0])
            return None

    step = measured(NoLoss(), rows())
    assert (step.backward_flops, step.gradients) == (0, 0)
    assert step.forward_flops > 0
