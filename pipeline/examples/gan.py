"""A generative adversarial network: two optimizers that step by hand, one after the other, in each batch."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional


class GAN(pl.LightningModule):
    """Draws samples that a second network cannot tell from those of the data.

    Source: I. Goodfellow et al., Generative Adversarial Networks, 2014, https://arxiv.org/abs/1406.2661, with the loss
    of its section 3 that does not saturate.

    Args:
        features: Numbers in 0..1 of a sample.
        latent: Random numbers that a sample is made of.
        hidden: Width of both networks.
        learning_rate: Of both optimizers, Adam.
    """

    def __init__(self, features: int = 64, latent: int = 16, hidden: int = 128, learning_rate: float = 2e-4) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.latent = latent
        self.learning_rate = learning_rate
        self.generator = nn.Sequential(
            nn.Linear(latent, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, features), nn.Sigmoid()
        )
        self.discriminator = nn.Sequential(nn.Linear(features, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1))

    def forward(self, noise: Tensor) -> Tensor:
        """(batch, latent) -> (batch, features)."""
        samples: Tensor = self.generator(noise)
        return samples

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One step of each network on a batch (x, ...), logged as `discriminator_loss` and `generator_loss`."""
        x = batch[0].flatten(1)
        optimizers: Any = self.optimizers()
        of_generator, of_discriminator = optimizers
        self.toggle_optimizer(of_discriminator)
        loss = self._told_apart(x, self(self._noise(x)).detach())
        self._step(of_discriminator, loss, "discriminator_loss")
        self.untoggle_optimizer(of_discriminator)

        self.toggle_optimizer(of_generator)
        taken_for_real = self.discriminator(self(self._noise(x)))
        loss = functional.binary_cross_entropy_with_logits(taken_for_real, torch.ones_like(taken_for_real))
        self._step(of_generator, loss, "generator_loss")
        self.untoggle_optimizer(of_generator)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log how well samples of the data are taken for real as `val_real`: 1 for sure, 0.5 undecided."""
        real = self.discriminator(batch[0].flatten(1)).sigmoid().mean()
        self.log("val_real", real, prog_bar=True, sync_dist=True, batch_size=len(batch[0]))

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Log the same as `test_real`; each sample's share becomes a column of scores.csv."""
        real = self.discriminator(batch[0].flatten(1)).sigmoid().squeeze(1)
        self.log("test_real", real.mean(), batch_size=len(real))
        return {"real": real}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for each of both."""
        return [
            torch.optim.Adam(network.parameters(), lr=self.learning_rate, betas=(0.5, 0.999))
            for network in (self.generator, self.discriminator)
        ]

    def _noise(self, x: Tensor) -> Tensor:
        return torch.randn(len(x), self.latent, device=x.device)

    def _told_apart(self, real: Tensor, drawn: Tensor) -> Tensor:
        found = self.discriminator(torch.cat([real, drawn]))
        truth = torch.cat([torch.ones(len(real), 1), torch.zeros(len(drawn), 1)]).to(found)
        return functional.binary_cross_entropy_with_logits(found, truth)

    def _step(self, optimizer: Any, loss: Tensor, name: str) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.log(name, loss, prog_bar=True)
