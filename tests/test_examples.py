"""The example data: embedded digits, and MNIST from any URL, whose bytes are never trusted."""

import functools
import gzip
import http.server
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from pipeline.examples import mnist
from pipeline.examples.autoencoder import LitAutoEncoder
from pipeline.examples.digits import Digits
from pipeline.examples.mnist import MNIST


def test_the_digits_are_all_there_split_once_and_for_all() -> None:
    splits = [Digits(split) for split in ("train", "val", "test")]
    assert [len(split) for split in splits] == [1257, 180, 360]
    pixels = torch.cat([split.pixels for split in splits])
    assert pixels.dtype == torch.float32
    assert (pixels.min(), pixels.max()) == (0, 1)
    assert int((pixels * 16).sum()) == 561718, "the sum over the file as it was published"
    assert [int((torch.cat([split.labels for split in splits]) == digit).sum()) for digit in range(10)] == [
        *(178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
    ]
    assert [int(split[0][1]) for split in splits] == [int(Digits(name)[0][1]) for name in ("train", "val", "test")]


def test_an_unknown_split_is_refused() -> None:
    for dataset in (Digits, functools.partial(MNIST, "/nowhere")):
        with pytest.raises(ValueError, match="split='dev': allowed are 'train', 'val', 'test'"):
            dataset(split="dev")


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def files() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    made = {}
    for prefix, count in (("train", 5_010), ("t10k", 20)):
        made[f"{prefix}-images-idx3-ubyte"] = idx(generator.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        made[f"{prefix}-labels-idx1-ubyte"] = idx(generator.integers(0, 10, count, dtype=np.uint8))
    return made


def put(root: str, content: dict[str, bytes], zipped: bool) -> None:
    fs, path = fsspec.core.url_to_fs(root)
    fs.makedirs(path, exist_ok=True)
    for name, data in content.items():
        fs.pipe_file(f"{path}/{name}{'.gz' if zipped else ''}", gzip.compress(data) if zipped else data)


@pytest.fixture(autouse=True)
def forget() -> None:
    mnist._idx.cache_clear()


@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_is_read_from_every_storage(storage: str, zipped: bool) -> None:
    put(storage, files(), zipped)
    assert [len(MNIST(storage, split)) for split in ("train", "val", "test")] == [10, 5_000, 20]
    pixels, label = MNIST(storage, "test")[3]
    expected = np.frombuffer(files()["t10k-images-idx3-ubyte"], np.uint8, offset=16).reshape(20, 28, 28)[3]
    np.testing.assert_allclose(pixels.numpy(), expected / 255, rtol=1e-6)
    assert int(label) == files()["t10k-labels-idx1-ubyte"][8 + 3]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    put(str(tmp_path), files(), zipped=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_mnist_is_read_over_http(web: str) -> None:
    assert len(MNIST(web, "test")) == 20


def test_training_and_validation_share_no_image(tmp_path: Path) -> None:
    put(str(tmp_path), files(), zipped=False)
    whole = np.frombuffer(files()["train-images-idx3-ubyte"], np.uint8, offset=16).reshape(-1, 28, 28)
    joined = torch.cat([MNIST(str(tmp_path), "train").images, MNIST(str(tmp_path), "val").images])
    assert np.array_equal(joined.numpy(), whole)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("t10k-images-idx3-ubyte", None, "neither .* could be read"),
        ("t10k-images-idx3-ubyte", b"", "starts with"),
        ("t10k-images-idx3-ubyte", b"<html>not found</html>", "starts with 3c 68 74 6d"),
        ("t10k-images-idx3-ubyte", bytes((0, 0, 8, 3, 0, 0)), "shorter than its header"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((20, 28, 28), np.uint8))[:-1], "asks for 15696"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((20, 28, 28), np.uint8)) + b"x", "asks for 15696"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((20, 14, 14), np.uint8)), r"images of \(14, 14\)"),
        ("t10k-images-idx3-ubyte", idx(np.zeros(20, np.uint8)), "3 dimensions"),
        ("t10k-images-idx3-ubyte", gzip.compress(b"x" * 1000)[:-9], "damaged gzip"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(19, np.uint8)), "20 images .* but 19 labels"),
    ],
)
def test_a_short_foreign_or_missing_file_is_named(tmp_path: Path, name: str, data: bytes | None, words: str) -> None:
    content = files()
    if data is None:
        del content[name]
    else:
        content[name] = data
    put(str(tmp_path), content, zipped=False)
    with pytest.raises(ValueError, match=f"(?s){name}.*{words}|{words}.*{name}"):
        MNIST(str(tmp_path), "test")


def test_the_autoencoder_has_the_sizes_of_lightnings_documentation() -> None:
    model = LitAutoEncoder(learning_rate=0.1, input_dim=784)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts == {"encoder": 50_435, "decoder": 51_216}
    assert model(torch.zeros(5, 28, 28)).shape == (5, 784)
    assert dict(model.hparams) == {"learning_rate": 0.1, "input_dim": 784}
    assert model.example_input_array.shape == (1, 784)
