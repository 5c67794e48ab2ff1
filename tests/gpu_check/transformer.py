"""A decoder-only transformer as most are written, its tokens, and what a step of it costs the device."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from tests.benchmarks.processes import clock

PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}
"""Dense bf16 operations a second of the makers' data sheets, by words of the card's name; the first that fits."""


def peak_of(card: str) -> float | None:
    """Operations a second of a card's data sheet; None if it is not known."""
    return next((value for name, value in PEAKS.items() if re.search(rf"\b{name}\b", card)), None)


@dataclass(frozen=True)
class Shape:
    """The size of a transformer."""

    layers: int
    width: int
    heads: int
    length: int
    vocabulary: int

    def flags(self, prefix: str) -> list[str]:
        """As a command line."""
        return [f"{prefix}.{name}={value}" for name, value in vars(self).items()]

    @property
    def parameters(self) -> int:
        """Weights that multiply each token: those of the layers, and the head, which embeds as well."""
        return 12 * self.layers * self.width**2 + self.vocabulary * self.width

    @property
    def operations(self) -> int:
        """Of the forward and the backward pass, a token: 6 a weight, and attention (PaLM, appendix B)."""
        return 6 * self.parameters + 12 * self.layers * self.width * self.length


GPT2 = Shape(layers=12, width=768, heads=12, length=1024, vocabulary=50_304)
"""124 M weights."""
SMALL = Shape(layers=2, width=32, heads=2, length=16, vocabulary=64)


class Block(nn.Module):
    """Attention and two linear layers, each beside a shortcut."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.qkv(self.before(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.wide(self.between(x))


class Transformer(nn.Module):
    """(batch, length) tokens -> (batch, length, vocabulary) logits of the next ones; embedding and head are tied."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.places = nn.Embedding(shape.length, shape.width)
        self.blocks = nn.Sequential(*(Block(shape.width, shape.heads, dropout) for _ in range(shape.layers)))
        self.last = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        logits: Tensor = self.head(self.last(self.blocks(self.tokens(tokens) + self.places(places))))
        return logits


def loss_of(model: nn.Module, tokens: Tensor, following: Tensor) -> Tensor:
    """The mean cross entropy of each next token."""
    return functional.cross_entropy(model(tokens).flatten(0, 1), following.flatten())


class LitTransformer(pl.LightningModule):
    """The transformer, each of whose steps ticks.

    Args:
        layers: Blocks.
        width: Numbers a token.
        heads: Of attention.
        length: Tokens a sample.
        vocabulary: Different tokens.
        dropout: Draws from the device's generator in each step.
        backend: Of torch.compile; empty: not compiled.
    """

    def __init__(
        self, layers: int, width: int, heads: int, length: int, vocabulary: int, dropout: float = 0.0, backend: str = ""
    ) -> None:
        super().__init__()
        shape = Shape(layers, width, heads, length, vocabulary)
        plain = Transformer(shape, dropout)
        self.network = torch.compile(plain, backend=backend) if backend else plain

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        tick()
        loss = loss_of(self.network, *batch)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-4, fused=True)


@lru_cache(maxsize=1)
def tokens_of(count: int, length: int, vocabulary: int) -> Tensor:
    """Samples of random tokens, (count, length + 1), always the same."""
    return torch.randint(vocabulary, (count, length + 1), generator=torch.Generator().manual_seed(0))


class Tokens(Dataset[Any]):
    """Those samples, as (tokens, following tokens), fetched batch by batch."""

    deterministic = True

    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        self.x = tokens_of(count, length, vocabulary)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index, :-1], self.x[index, 1:]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        rows = self.x.index_select(0, torch.as_tensor(indices))
        return rows[:, :-1], rows[:, 1:]


def tick() -> None:
    """Note that a step begins, once the device has done all before it: at the ends of the window only."""
    if clock.ticks in (clock.first, clock.last) and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    clock.tick()
