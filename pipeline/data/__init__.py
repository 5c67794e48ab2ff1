"""Which sample comes when, and the proof that it did: order, DataModule, sample ids, ledger.

May import: errors. A user's configuration names :class:`DataModule` from here.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.data.datamodule import DataModule

__all__ = ["DataModule"]


def __getattr__(name: str) -> Any:
    """Import Lightning only where somebody asks for the DataModule: `verify` reads a ledger without it."""
    if name == "DataModule":
        from pipeline.data.datamodule import DataModule  # noqa: PLC0415

        return DataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
