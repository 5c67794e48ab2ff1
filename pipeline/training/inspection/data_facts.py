"""What the sets of a data module, or of a model that brings its loaders, consist of."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lightning.pytorch.utilities.model_helpers import is_overridden

from pipeline.data.datamodule import DataModule
from pipeline.errors import StorageAway, UserError
from pipeline.training.inspection.set_facts import SPLITS, DataQuestion, SetFacts, of_data_module, of_loaders


@dataclass
class DataFacts:
    """What was found.

    Attributes:
        sets: In the order of the splits.
        failures: What the user's own hooks and loaders raised, by their names.
    """

    sets: list[SetFacts] = field(default_factory=list)
    failures: dict[str, Exception] = field(default_factory=dict)

    def attempt(self, name: str, do: Callable[[], Any]) -> bool:
        """Call a hook of the user's; return False where it fails."""
        try:
            do()
        except (UserError, StorageAway):
            raise
        except Exception as error:  # noqa: BLE001 - the user's own code
            self.failures[name] = error
            return False
        return True


def look_at_data(source: Any, asked: DataQuestion) -> DataFacts:
    """Set data up as a training, a test and a prediction would, and look at each set.

    Args:
        source: A data module, or a model that brings its loaders. Its hooks are called, so give one of its own.
        asked: What is asked of each set.

    Raises:
        StorageAway: What the data read does not answer.
    """
    found = DataFacts()
    if not found.attempt("prepare_data()", source.prepare_data):
        return found
    set_up: dict[str, bool] = {}
    for split, stage in SPLITS.items():
        if not _has_loader(source, split):
            continue
        if stage not in set_up:
            set_up[stage] = found.attempt(f"setup({stage!r})", partial(source.setup, stage))
        if set_up[stage]:
            found.attempt(f"{split}_dataloader()", partial(_look_at_split, found, source, split, asked))
    return found


def _has_loader(source: Any, split: str) -> bool:
    return _is_ours(source, split) or is_overridden(f"{split}_dataloader", source)


def _is_ours(source: Any, split: str) -> bool:
    """Return whether a set goes through the loader of this project's DataModule."""
    return isinstance(source, DataModule) and not is_overridden(f"{split}_dataloader", source, parent=DataModule)


def _look_at_split(found: DataFacts, source: Any, split: str, asked: DataQuestion) -> None:
    if not _is_ours(source, split):
        found.sets += of_loaders(split, getattr(source, f"{split}_dataloader")(), asked)
    else:
        found.sets += [of_data_module(source, split, asked, name) for name in source.sets(split)]
