"""The logged metric that tells which checkpoint is best."""

from typing import TYPE_CHECKING

from pipeline.checkpoint.commit import Monitor

if TYPE_CHECKING:
    from pipeline.training.trainer_state import TrainerState


class MonitoredMetric:
    """A metric of the model's.

    Args:
        state: Of the trainer, which knows what was logged.
        name: Of the metric; None: none is monitored, and the latest checkpoint is best.
        mode: Whether the least (`min`) or the greatest (`max`) value of it is best.
    """

    def __init__(self, state: "TrainerState", name: str | None, mode: str) -> None:
        self._state, self._name, self._mode = state, name, mode

    @property
    def value(self) -> Monitor | None:
        """What it is now; None where it is not known."""
        found = None if self._name is None else self._state.metrics().get(self._name)
        return None if found is None else Monitor.of(str(self._name), float(found), self._mode)

    def missing(self) -> str | None:
        """Return what is wrong if the model does not log it, on every rank; None if it does. All ranks must call it."""
        # Rank 0's value is the one that counts: the model may log it on rank 0 only.
        known = self._state.metrics()
        if self._name is None or self._state.broadcast(self._name in known):
            return None
        logged = ", ".join(sorted(known)) or "none"
        return f"checkpoints.monitor={self._name!r} is not logged by the model; logged are: {logged}"
