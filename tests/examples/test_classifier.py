"""The classifier of any network."""

import pytest
import torch
from torch import nn

from pipeline.examples.classifier import Classifier, Layers
from pipeline.examples.digits import Digits


def layers() -> Layers:
    return Layers([nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)])


def test_frozen_parameters_keep_their_values() -> None:
    model = Classifier(layers(), frozen=["0.*"])
    before = {name: value.clone() for name, value in model.network.named_parameters()}
    digits = Digits("val")
    optimizer = model.configure_optimizers()
    nn.functional.cross_entropy(model(digits.pixels), digits.labels).backward()
    optimizer.step()
    changed = {name for name, value in model.network.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"2.weight", "2.bias"}


@pytest.mark.parametrize(
    ("frozen", "words"),
    [(["encoder.*", "0.*"], r"frozen=\['encoder.\*'\] fits no parameter; .*0.weight"), (["*"], "leaves")],
)
def test_patterns_that_cannot_be_meant_are_refused(frozen: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Classifier(layers(), frozen=frozen)


def test_logits_may_be_within_an_object() -> None:
    class Wrapped(nn.Module):
        def forward(self, x):
            return type("Output", (), {"logits": x})

    assert torch.equal(
        Classifier(nn.Sequential(nn.Linear(1, 1), Wrapped())).predict_step([torch.ones(1, 1)], 0), torch.ones(1, 1)
    )
