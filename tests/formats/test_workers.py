"""Every format is read in loader workers, forked and spawned, after this process has read it."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.formats import Arrays, HuggingFace, Images, Table, TarShards
from tests.support import formats


class All(Dataset[Any]):
    """Several datasets of one length, side by side."""

    def __init__(self, datasets: dict[str, Any]) -> None:
        self.datasets = datasets

    def __len__(self) -> int:
        return 48

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        return {name: dataset.__getitems__(indices) for name, dataset in self.datasets.items()}


def keep(batch: Any) -> Any:
    return batch


def equal(left: Any, right: Any) -> bool:
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else bool(left == right)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("cached", [True, False])
def test_workers_read_what_this_process_reads(cached: bool, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {
        "table": Table(formats.write_table(f"{storage}/table")),
        "lz4": Table(formats.write_table(f"{storage}/lz4", kind="lz4")),
        "images": Images(formats.write_images(f"{storage}/images")),
        "shards": TarShards(formats.write_shards(f"{storage}/shards")),
        "arrays": Arrays(f"{formats.write_arrays(f'{storage}/arrays')}/rows.safetensors"),
        "saved": HuggingFace(formats.write_saved(f"{storage}/saved")),
    }
    if not cached:
        if "://" not in storage:
            pytest.skip("local files are read in place")
        monkeypatch.setenv("PIPELINE_CACHE_BYTES", "2000")
        made = {
            "table": Table(f"{storage}/table", decoded_bytes=1),
            "lz4": Table(f"{storage}/lz4"),
            "shards": TarShards(f"{storage}/shards"),
        }
        assert not any(each.files.mapped for each in made.values())
        monkeypatch.setenv("PIPELINE_CACHE_BYTES", "20000")
    here = All(made)
    for context in ("fork", "spawn"):
        loader = DataLoader(here, 24, num_workers=1, collate_fn=keep, multiprocessing_context=context)
        for at, batch in enumerate(loader):
            mine = here.__getitems__(list(range(24 * at, 24 * at + 24)))
            for name in made:
                ours, theirs = (
                    each[name] if isinstance(each[name], tuple) else tuple(each[name].values())
                    for each in (mine, batch)
                )
                assert all(map(equal, ours, theirs)), (context, name)
