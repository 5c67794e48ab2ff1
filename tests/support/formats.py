"""The embedded digits, written in each of the formats, on any storage."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch

from pipeline.examples.digits import Digits


def digits(count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(count, 64) float32 in 0..1 and (count,) int64."""
    found = Digits("train")
    return found.pixels[:count].numpy(), found.labels[:count].numpy()


def put(url: str, data: bytes) -> str:
    fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    if "://" not in url:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    fs.pipe_file(path, data)
    return url


def arrow_table(count: int) -> Any:
    import pyarrow as pa

    x, y = digits(count)
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 64)
    names = [f"digit {label}" for label in y]
    return pa.table({"pixels": pixels, "label": pa.array(y), "name": pa.array(names)})


def table_bytes(table: Any, kind: str, rows: int = 16) -> bytes:
    """A table as a file: `parquet`, `arrow`, `stream` or `lz4`, an Arrow file that is compressed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, out, row_group_size=rows, write_page_checksum=True)
    elif kind == "stream":
        with pa.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table, rows)
    else:
        options = pa.ipc.IpcWriteOptions(compression="lz4" if kind == "lz4" else None)
        with pa.ipc.new_file(out, table.schema, options=options) as file:
            file.write_table(table, rows)
    return out.getvalue()


def write_table(url: str, count: int = 48, kind: str = "parquet", files: int = 2) -> str:
    """A folder of files with the columns `pixels`, `label` and `name`."""
    table, each = arrow_table(count), -(-count // files)
    ending = "parquet" if kind == "parquet" else "arrow"
    for at in range(files):
        put(f"{url}/part-{at}.{ending}", table_bytes(table.slice(at * each, each), kind))
    return url


def png(pixels: np.ndarray[Any, Any], form: str = "PNG") -> bytes:
    """A picture of (H, W) or (H, W, 3) uint8."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def write_images(url: str, count: int = 48) -> str:
    """A folder for each class."""
    x, y = digits(count)
    for at in range(count):
        put(f"{url}/{y[at]}/{at:04d}.png", png((x[at].reshape(8, 8) * 255).astype(np.uint8)))
    return url


def tar_bytes(members: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return out.getvalue()


def npy(array: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def write_shards(url: str, count: int = 48, shards: int = 3) -> str:
    """Shards with `npy`, `png`, `cls`, `txt` and `json` for each sample."""
    x, y = digits(count)
    each = -(-count // shards)
    for shard in range(shards):
        members = []
        for at in range(shard * each, min(count, (shard + 1) * each)):
            members += [
                (f"{at:06d}.npy", npy(x[at])),
                (f"{at:06d}.png", png((x[at].reshape(8, 8) * 255).astype(np.uint8))),
                (f"{at:06d}.cls", str(y[at]).encode()),
                (f"{at:06d}.txt", f"digit {y[at]}".encode()),
                (f"{at:06d}.json", json.dumps({"at": at}).encode()),
            ]
        put(f"{url}/train-{shard:03d}.tar", tar_bytes(members))
    return url


def write_arrays(url: str, count: int = 48) -> str:
    """`rows.safetensors`, `rows.npz`, and `pixels.npy` beside `label.npy`."""
    from safetensors.torch import save

    x, y = digits(count)
    tensors = {"pixels": torch.from_numpy(x), "label": torch.from_numpy(y)}
    put(f"{url}/rows.safetensors", save({**tensors, "half": tensors["pixels"].bfloat16()}))
    out = io.BytesIO()
    np.savez(out, pixels=x, label=y)
    put(f"{url}/rows.npz", out.getvalue())
    put(f"{url}/pixels.npy", npy(x))
    put(f"{url}/label.npy", npy(y))
    return url


def write_saved(url: str, count: int = 48) -> str:
    """What `save_to_disk` of Hugging Face's datasets writes."""
    import tempfile

    import datasets

    x, y = digits(count)
    made = datasets.Dataset.from_dict({"pixels": x, "label": y, "name": [f"digit {each}" for each in y]})
    with tempfile.TemporaryDirectory() as folder:
        made.save_to_disk(folder, num_shards=2)
        for path in Path(folder).iterdir():
            put(f"{url}/{path.name}", path.read_bytes())
    return url
