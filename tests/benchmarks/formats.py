"""Rows out of each format, one by one and in batches, beside the plain reading of the format's own library.

    python -m tests.benchmarks.formats

Both read the same rows in the same random order, by turns, in one process; webdataset's stream has an order of its own.
Printed are rows a second of CPU time and their ratio.
"""

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.formats import Arrays, HuggingFace, Images, Table, TarShards
from tests.support import formats

ROWS, BATCH, ROUNDS = 1200, 64, 5
Fetch = Callable[[Sequence[int]], Any]


def rate(fetch: Fetch, batches: list[list[int]]) -> float:
    """Rows a second of CPU time, that of all threads: the wall tells how busy the machine is."""
    began = time.process_time()
    for batch in batches:
        fetch(batch)
    return sum(map(len, batches)) / (time.process_time() - began)


def compared(name: str, ours: Fetch, theirs: Fetch, how: str) -> str:
    order = np.random.default_rng(0).permutation(ROWS).tolist()
    cells = [name, how]
    for size in (1, BATCH):
        batches = [order[at : at + size] for at in range(0, ROWS, size)][: 1200 if size > 1 else 300]
        rate(ours, batches), rate(theirs, batches)
        found = [(rate(ours, batches), rate(theirs, batches)) for _ in range(ROUNDS)]
        mine, other = (statistics.median(each) for each in zip(*found, strict=True))
        ratio = statistics.median(ours / theirs for ours, theirs in found)
        cells += [f"{mine:,.0f}", f"{other:,.0f}", f"{ratio:.2f}"]
    return f"| {' | '.join(cells)} |"


def table_rows(folder: str) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def tensors(table: Any) -> Any:
        pixels = table.column("pixels").combine_chunks().flatten().to_numpy()
        return torch.tensor(pixels.reshape(-1, 64)), torch.tensor(table.column("label").to_numpy())

    lines = []
    arrow = formats.write_table(f"{folder}/arrow", ROWS, "arrow", 1)
    mapped = pa.ipc.open_file(pa.memory_map(f"{arrow}/part-0.arrow")).read_all().select(["pixels", "label"])
    ours = Table(arrow, ["pixels", "label"])
    lines.append(compared("Arrow, mapped", ours.__getitems__, lambda at: tensors(mapped.take(at)), "pyarrow `take`"))
    parquet = formats.write_table(f"{folder}/parquet", ROWS, "parquet", 1)
    whole = pq.read_table(f"{parquet}/part-0.parquet", columns=["pixels", "label"])
    ours = Table(parquet, ["pixels", "label"])
    how = "pyarrow `take`, all in memory"
    lines.append(compared("Parquet, all kept", ours.__getitems__, lambda at: tensors(whole.take(at)), how))
    file = pq.ParquetFile(f"{parquet}/part-0.parquet")

    def by_group(rows: Sequence[int]) -> Any:
        groups = {row // 16 for row in rows}
        read = {group: file.read_row_group(group, columns=["pixels", "label"]) for group in groups}
        return [tensors(read[row // 16].slice(row % 16, 1)) for row in rows]

    few = Table(parquet, ["pixels", "label"], decoded_bytes=1)
    lines.append(compared("Parquet, one group kept", few.__getitems__, by_group, "pyarrow `read_row_group`"))
    return lines


def other_rows(folder: str) -> list[str]:
    import datasets
    import webdataset
    from PIL import Image

    lines = []
    saved = HuggingFace(formats.write_saved(f"{folder}/saved", ROWS), columns=["pixels", "label"])
    library = datasets.load_from_disk(f"{folder}/saved").with_format("torch", columns=["pixels", "label"])
    lines.append(compared("datasets, saved", saved.__getitems__, lambda at: library[list(at)], "datasets"))
    x, _ = formats.digits(ROWS)
    for at in range(ROWS):
        pixels = (np.kron(x[at].reshape(8, 8), np.ones((16, 16))) * 255).astype(np.uint8)
        formats.put(f"{folder}/images/digits/{at}.jpg", formats.png(pixels, "JPEG"))
    images = Images(f"{folder}/images", mode="L")
    paths = [each.path for each in images.files.files]

    def pictures(rows: Sequence[int]) -> Any:
        arrays = [np.asarray(Image.open(paths[row]).convert("L"), np.float32)[None] / 255 for row in rows]
        return torch.from_numpy(np.stack(arrays))

    lines.append(compared("JPEG, 128 x 128", images.__getitems__, pictures, "Pillow"))
    shards = TarShards(formats.write_shards(f"{folder}/shards", ROWS), ["npy", "cls"])
    urls = f"{folder}/shards/train-{{000..002}}.tar"
    # Of each sample only what the other one reads.
    chosen = {"select_files": lambda name: name.endswith((".npy", ".cls"))}
    stream = webdataset.WebDataset(urls, shardshuffle=False, **chosen).decode()

    def streamed(rows: Sequence[int]) -> Any:
        found = [(torch.from_numpy(each["npy"]), each["cls"]) for each, _ in zip(reader[0], rows, strict=False)]
        if len(found) < len(rows):
            reader[0] = iter(stream)
        return found

    reader = [iter(stream)]
    lines.append(compared("Tar shards, npy and cls", shards.__getitems__, streamed, "webdataset, in order"))
    arrays = Arrays(f"{formats.write_arrays(f'{folder}/arrays', ROWS)}/rows.npz", ["pixels", "label"])
    x = np.load(f"{folder}/arrays/pixels.npy", mmap_mode="r")
    y = np.load(f"{folder}/arrays/label.npy", mmap_mode="r")
    plain = lambda rows: (torch.from_numpy(x[rows]), torch.from_numpy(y[rows]))  # noqa: E731
    lines.append(compared("Arrays, mapped", arrays.__getitems__, plain, "numpy's memory map"))
    return lines


def main() -> None:
    """Print the table of docs/formats.md."""
    torch.set_num_threads(1)
    sys.stderr = io.StringIO()  # the bars of libraries
    print("| Format | Beside | one by one: rows/s | library's | ratio | batches of 64: rows/s | library's | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for line in (*table_rows(folder), *other_rows(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
