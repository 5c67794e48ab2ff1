"""The example model has the layers of Lightning's documentation."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.examples.autoencoder import LitAutoEncoder
from tests.support.commands import DIGITS, QUICK, Ended


def test_the_autoencoder_has_the_sizes_of_lightnings_documentation() -> None:
    model = LitAutoEncoder(learning_rate=0.1, input_dim=784)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts == {"encoder": 50_435, "decoder": 51_216}
    assert model(torch.zeros(5, 28, 28)).shape == (5, 784)
    assert dict(model.hparams) == {"learning_rate": 0.1, "input_dim": 784}
    assert model.example_input_array.shape == (1, 784)


def test_each_validation_shows_samples_above_their_reconstructions(app: Callable[..., Ended], tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = app("fit", "--config", DIGITS, "--run_dir", run, *QUICK)
    assert ended.status == 0, ended.text
    found = EventAccumulator(str(run / "logs")).Reload()
    images = found.Images("reconstructions")
    (epoch,) = {image.step for image in images[:1]}
    assert [image.step for image in images] == [epoch, 2 * epoch]
    assert {(image.width, image.height) for image in images} == {(8 * 32, 2 * 32)}
    picture = np.asarray(Image.open(io.BytesIO(images[-1].encoded_image_string)).convert("L"))
    assert picture.shape == (64, 256)
    assert picture[:32].max() > 200, "the samples are drawn"
    assert np.array_equal(picture[0::4, 0::4].repeat(4, 0).repeat(4, 1), picture), "each pixel four times as large"
