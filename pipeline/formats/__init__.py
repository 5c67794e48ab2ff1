"""Datasets in the formats that people have, each read by its own library: tables, images, tar shards, arrays.

A configuration names them from here, for `pipeline.data.DataModule`; docs/formats.md shows how.
May import: errors, process, data, run, cache.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.formats.arrays import Arrays
    from pipeline.formats.hugging_face import HuggingFace
    from pipeline.formats.images import Images
    from pipeline.formats.table import Table
    from pipeline.formats.tar_shards import TarShards

__all__ = ["Arrays", "HuggingFace", "Images", "Table", "TarShards"]

_MODULES = {
    "Arrays": "arrays",
    "HuggingFace": "hugging_face",
    "Images": "images",
    "Table": "table",
    "TarShards": "tar_shards",
}


def __getattr__(name: str) -> Any:
    """Import a format only where it is named."""
    if name in _MODULES:
        from importlib import import_module  # noqa: PLC0415

        return getattr(import_module(f"pipeline.formats.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
