"""MNIST from any URL, whose bytes are never trusted."""

import functools
import gzip
import http.server
import pickle
import struct
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.data.seeded import SeededCollate, SeededDataset
from pipeline.examples.mnist import MNIST


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split='dev' must be one of 'train', 'val', 'test'"):
        MNIST("/nowhere", split="dev")


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
        fs.pipe_file(f"{path}/{name}{'.gz' if zipped else ''}", gzip.compress(data, mtime=0) if zipped else data)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PIPELINE_CACHE_DIR", str(folder))
    return folder


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
    joined = np.concatenate([MNIST(str(tmp_path), "train").images, MNIST(str(tmp_path), "val").images])
    assert np.array_equal(joined, whole)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_batch_of_mnist_is_what_its_samples_are(storage: str, zipped: bool) -> None:
    put(storage, files(), zipped)
    dataset = MNIST(storage, "val")
    indices = [4_999, 0, 17, 17, -1]
    pixels, labels = dataset.__getitems__(indices)
    assert pixels.shape == (5, 28, 28)
    for row, label, index in zip(pixels, labels, indices, strict=True):
        assert torch.equal(row, dataset[index][0])
        assert torch.equal(label, dataset[index][1])
    pixels.zero_()
    dataset[0][0].zero_()
    assert dataset[0][0].any(), "a batch is the user's own to change"
    with pytest.raises(IndexError):
        dataset.__getitems__([5_000])


@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_reaches_loader_workers_as_a_name(tmp_path: Path, s3: str, cache: Path, zipped: bool) -> None:
    for root in (str(tmp_path), f"{s3}/{uuid.uuid4().hex}"):
        put(root, files(), zipped)
        dataset = MNIST(root, "val")
        assert dataset.images.source is not None
        assert dataset.images.source.path.startswith(str(cache if zipped or "s3:" in root else tmp_path))
        assert len(pickle.dumps(dataset)) < 50_000, "5,000 labels, and not a pixel"
        again = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(again[7][0], dataset[7][0])
    if zipped:
        context = {"num_workers": 1, "multiprocessing_context": "spawn"}
        loader = DataLoader(SeededDataset(dataset, 0), batch_size=1_000, collate_fn=SeededCollate(None), **context)
        assert torch.equal(torch.cat([pixels for pixels, _ in loader]), dataset.__getitems__(list(range(5_000)))[0])


def test_mnist_has_one_fingerprint_wherever_it_lies(tmp_path: Path, s3: str) -> None:
    roots = [str(tmp_path / "plain"), str(tmp_path / "zipped"), f"{s3}/{uuid.uuid4().hex}-zipped"]
    for root in roots:
        put(root, files(), "zipped" in root)
    prints = {MNIST(root, split).fingerprint() for root in roots for split in ("train", "val", "test")}
    assert len(prints) == 3
    put(roots[0], files() | {"t10k-labels-idx1-ubyte": idx(np.zeros(20, np.uint8))}, zipped=False)
    assert MNIST(roots[0], "test").fingerprint() not in prints
    assert MNIST(roots[0], "train").fingerprint() in prints


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
        ("t10k-images-idx3-ubyte", gzip.compress(b"x" * 1000, mtime=0)[:-9], "damaged gzip"),
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
