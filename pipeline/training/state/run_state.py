"""What this project adds to a Lightning checkpoint: one typed `RunState`, and the only place that knows its keys.

Everything in it is tensors, numbers and strings, so that it loads without executing pickled code. Reading it needs
torch, but not Lightning.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import fsspec

from pipeline.errors import UserError
from pipeline.run.retry import patiently
from pipeline.run.run_dir import SCHEMA
from pipeline.run.storage_errors import is_away, raise_for_user, storage_error

KEY = "pipeline"
"""The key under which a checkpoint holds it."""

_LATER = ("stop", "found", "modes", "masks", "built")
"""Fields that the first release did not have, and that most checkpoints do without."""

_HEAD = 1 << 16
"""Bytes read from a storage at once, where only a small part of a checkpoint is wanted."""


@dataclass(frozen=True)
class RunState:
    """Where a run stands between two batches, beside what Lightning saves.

    Attributes:
        facts: What a resume is compared with, see `pipeline.config.compatibility.facts`.
        epoch: The epoch to continue with, counted from 0.
        batches: Batches of that epoch that each rank has completed.
        position: Training samples of that epoch consumed by all ranks together; None for foreign data.
        ledger: The records of all epochs, see `pipeline.data.ledger.Ledger`; None for foreign data.
        ranks: By rank, the random number generators and the running sums of the open epoch; on rank 0 only.
        metrics: What callbacks and learning rate schedules may monitor, by name.
        validation_pending: Whether the validation after the last batch was cut short, and comes first.
        bucket_order: The order in which DDP sums gradients, see `bucket_order`.
        stop: Who has asked training to stop, see `run_end`; None: nobody has. With `min_epochs` or `min_steps` training
            continues for a while after that.
        modes: What callbacks have frozen or put into eval mode, see `model_modes`.
        built: The settings of optimizers and schedules, see `optimizer_settings`.
        masks: By pruned weight, the weights before pruning and the mask.
        found: What finders of a learning rate or batch size have set, by attribute, see `finders`.
    """

    facts: dict[str, Any]
    epoch: int
    batches: int
    position: int | None
    ledger: list[dict[str, Any]] | None
    ranks: list[dict[str, Any]]
    metrics: dict[str, float]
    validation_pending: bool = False
    bucket_order: list[int] | None = None
    stop: dict[str, Any] | None = None
    found: dict[str, Any] = field(default_factory=dict)
    modes: dict[str, Any] = field(default_factory=dict)
    masks: dict[str, Any] = field(default_factory=dict)
    built: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return what stands under `KEY`; some names are older than the attributes."""
        return {
            "schema": SCHEMA,
            "facts": self.facts,
            "epoch": self.epoch,
            "batches": self.batches,
            "position": self.position,
            "ledger": self.ledger,
            "state": {"ranks": self.ranks, "metrics": self.metrics},
            "owes_validation": self.validation_pending,
            "gradient_order": self.bucket_order,
            **{name: value for name in _LATER if (value := getattr(self, name))},
        }

    @staticmethod
    def of_checkpoint(checkpoint: Mapping[str, Any], url: str = "the checkpoint") -> "RunState | None":
        """Return the state in a loaded checkpoint; None in one of another program.

        Raises:
            UserError: It is damaged, or another version of this project wrote it.
        """
        found = checkpoint.get(KEY)
        if found is None:
            return None
        schema = found.get("schema") if isinstance(found, dict) else type(found).__name__
        if schema != SCHEMA:
            raise UserError(
                f"{url} holds a state of this project of schema {schema!r}; this version reads {SCHEMA}. Resume with "
                "the version that wrote it, or start a new run"
            )
        try:
            position, order, stop = found["position"], found["gradient_order"], found.get("stop")
            return RunState(
                facts=dict(found.get("facts") or {}),
                epoch=int(found["epoch"]),
                batches=int(found["batches"]),
                position=None if position is None else int(position),
                ledger=None if found["ledger"] is None else list(found["ledger"]),
                ranks=list(found["state"]["ranks"]),
                metrics=dict(found["state"]["metrics"]),
                validation_pending=bool(found.get("owes_validation")),
                bucket_order=None if order is None else [int(index) for index in order],
                stop=None if stop is None else dict(stop),
                **{name: dict(found.get(name) or {}) for name in ("found", "modes", "masks", "built")},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{url} holds a damaged state of this project ({type(error).__name__}: {error}): resume from an "
                "earlier checkpoint, or start a new run"
            ) from error


def read_run_state(url: str, weights_only: bool = True) -> RunState | None:
    """Read the state from a checkpoint file, of which no tensor's content is read.

    Args:
        url: A local path or any fsspec URL.
        weights_only: Whether to refuse what would execute pickled code.

    Returns:
        Numbers and strings as they are, tensors without content; None for a checkpoint of another program.

    Raises:
        UserError: The file cannot be read, or is no checkpoint.
        StorageAway: Its storage does not answer.
    """
    import torch  # noqa: PLC0415 - takes a second, which `verify` spends only once it has hashed
    from torch.serialization import skip_data  # noqa: PLC0415

    def read() -> Any:
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        with fs.open(path, "rb", block_size=_HEAD) as file, skip_data():
            return torch.load(file, map_location="cpu", weights_only=weights_only)

    try:
        checkpoint = patiently(url, read)
        if not isinstance(checkpoint, dict):
            raise TypeError(f"it holds a {type(checkpoint).__name__}")
    except Exception as error:
        if is_away(error):
            raise_for_user(error, f"{url} cannot be read", "Name a checkpoint file that this user may read")
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it holds a {code[1]}, which only executes as code" if code else storage_error(error)
        raise UserError(f"{url} cannot be read as a checkpoint: {why}") from error
    return RunState.of_checkpoint(checkpoint, url)
