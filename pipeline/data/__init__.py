"""Which sample comes when, and the proof that it did: order, DataModule, sample ids, ledger.

May import: errors. A user's configuration names :class:`DataModule`, :class:`Subset`, :class:`Split` and
:class:`Concat` from here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.data.datamodule import DataModule
    from pipeline.data.parts import Concat, Split, Subset

__all__ = ["Concat", "DataModule", "Split", "Subset"]

_MODULES = {"DataModule": "datamodule", "Subset": "parts", "Split": "parts", "Concat": "parts"}


def __getattr__(name: str) -> Any:
    """Import torch and Lightning only where somebody asks for these: `verify` reads a ledger without them."""
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
