"""The generative adversarial network."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from pipeline.examples.digits import Digits
from pipeline.examples.gan import GAN


def trained(**options: Any) -> tuple[pl.Trainer, GAN]:
    pl.seed_everything(1)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer, model = pl.Trainer(accelerator="cpu", max_epochs=1, **quiet, **options), GAN()
    digits = Digits()
    trainer.fit(model, DataLoader(TensorDataset(digits.pixels, digits.labels), batch_size=32))
    return trainer, model


def test_each_batch_steps_both_networks() -> None:
    before = {name: value.clone() for name, value in GAN().named_parameters()}
    trainer, model = trained(limit_train_batches=2)
    assert trainer.global_step == 4
    assert not [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert {"generator_loss", "discriminator_loss"} <= set(trainer.callback_metrics)


def test_it_draws_as_many_samples_as_it_gets_noise() -> None:
    samples = GAN(features=5, latent=3)(torch.zeros(7, 3))
    assert samples.shape == (7, 5)
    assert samples.min() >= 0
    assert samples.max() <= 1
