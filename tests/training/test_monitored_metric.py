"""The logged metric that tells which checkpoint is best."""

from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.training.monitored_metric import MonitoredMetric


@dataclass
class State:
    """What was logged, and what rank 0 says of it."""

    known: dict[str, Any] = field(default_factory=dict)
    rank_0: bool | None = None

    def metrics(self) -> dict[str, Any]:
        return self.known

    def broadcast(self, value: bool) -> bool:
        return value if self.rank_0 is None else self.rank_0


def metric(state: State, name: str | None = "val_loss") -> MonitoredMetric:
    return MonitoredMetric(state, name, "min")  # type: ignore[arg-type]


def test_its_value_is_what_was_logged_last() -> None:
    found = metric(State({"val_loss": torch.tensor(0.25)})).value
    assert found is not None
    assert (found.name, found.value) == ("val_loss", 0.25)
    assert metric(State()).value is None
    assert metric(State({"val_loss": 1.0}), None).value is None


def test_one_that_is_not_logged_is_named_with_those_that_are() -> None:
    missing = metric(State({"loss": 1.0, "acc": 0.5})).missing()
    assert missing == "checkpoints.monitor='val_loss' is not logged by the model; logged are: acc, loss"
    assert str(metric(State()).missing()).endswith("logged are: none")
    assert metric(State({"val_loss": 1.0})).missing() is None
    assert metric(State(), None).missing() is None


def test_a_metric_that_rank_0_alone_logs_is_logged() -> None:
    assert metric(State(rank_0=True)).missing() is None
