"""The example model has the layers of Lightning's documentation."""

import torch

from pipeline.examples.autoencoder import LitAutoEncoder


def test_the_autoencoder_has_the_sizes_of_lightnings_documentation() -> None:
    model = LitAutoEncoder(learning_rate=0.1, input_dim=784)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts == {"encoder": 50_435, "decoder": 51_216}
    assert model(torch.zeros(5, 28, 28)).shape == (5, 784)
    assert dict(model.hparams) == {"learning_rate": 0.1, "input_dim": 784}
    assert model.example_input_array.shape == (1, 784)
