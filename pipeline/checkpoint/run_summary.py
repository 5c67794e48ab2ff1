"""What is known of one run: how it stands, how far it has come, and what it was asked for.

`pipeline.checkpoint.run_records` reads it; nothing here asks a storage.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from pipeline.checkpoint.commit import Monitor


class RunCondition(StrEnum):
    """How a run stands, by its newest attempt and its lease."""

    RUNNING = "running"
    """Its lease is renewed."""
    FINISHED = "finished"
    PREEMPTED = "preempted"
    """It ended with status 75: the same command continues it."""
    INTERRUPTED = "interrupted"
    """A person ended it by Ctrl-C."""
    FAILED = "failed"
    """It ended with another status, which `status` and `reason` tell."""
    LOST = "lost"
    """It was killed: nothing says that it ended, and its lease is not renewed any more."""
    UNKNOWN = "unknown"
    """It has no attempt that can be read."""


@dataclass(frozen=True)
class RunSummary:
    """One run, as its records say. Times are in UTC.

    Attributes:
        url: Of the run directory, a plain path on a local disk.
        label: The same as a person types it.
        state: How it stands.
        status: The exit status of its newest attempt; None while it runs, and where it was killed.
        reason: Why that attempt ended, in words; None where nothing says so.
        started: When its first attempt started.
        updated: When anything in its directory was written last.
        attempts: How many starts it has had.
        world_size: Processes of its newest attempt.
        step: Optimizer steps that were done, durable or not; None before it is known.
        committed_step: The newest step with a checkpoint; None without one.
        epoch: The epoch that training resumes in, counted from 0; None before a checkpoint.
        max_steps: As configured; None where they are not limited.
        max_epochs: As configured; None where they are not limited.
        best: The monitored value of its best checkpoint; None without one.
        best_step: The step of that checkpoint.
        goodput: The useful share (0 to 1) of the time from the first start to the last end of all attempts that
            trained; None before one did.
        bytes: All that its directory holds, checkpoints included.
        checkpoints: How many are committed.
        config: What it was asked for (fit.yaml): the names of the flags of fit (`model.learning_rate`) with their
            values; lists are values. Empty before its first commit.
        metrics: What its evaluation measured; None before it was evaluated.
        problems: What is damaged, a sentence each.
    """

    url: str
    label: str
    state: RunCondition
    status: int | None = None
    reason: str | None = None
    started: datetime | None = None
    updated: datetime | None = None
    attempts: int = 0
    world_size: int | None = None
    step: int | None = None
    committed_step: int | None = None
    epoch: int | None = None
    max_steps: int | None = None
    max_epochs: int | None = None
    best: Monitor | None = None
    best_step: int | None = None
    goodput: float | None = None
    bytes: int = 0
    checkpoints: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] | None = None
    problems: Sequence[str] = ()


def differing_keys(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the keys in which configurations differ, in their order; an empty one is not compared.

    Args:
        configs: Of several runs, see `RunSummary.config`.
    """
    compared = [config for config in configs if config]
    if len(compared) < 2:
        return []
    first, *others = compared
    keys = {key: None for config in compared for key in config}
    return [key for key in keys if any(_differ(key, first, other) for other in others)]


def _differ(key: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if (key in one) != (key in other):
        return True
    a, b = one.get(key), other.get(key)
    return type(a) is not type(b) or a != b
