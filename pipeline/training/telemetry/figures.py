"""One window of a training in figures: what each rank measured, and what all of them say together. Pure functions."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class RankFigures(NamedTuple):
    """What one rank measured in one window: seconds, bytes and counts, as numbers that can be summed up in a tensor.

    Attributes:
        seconds: Of the window.
        steps: Optimizer steps that are done in it.
        samples: Of this rank's batches.
        data: Seconds for which this rank waited for batches.
        forward_backward: Seconds from a batch to its gradients, those of other ranks included.
        optimizer: Seconds from the gradients to the end of the batch.
        p50: Median of a step's seconds; `p95` and `longest` likewise.
        saves: Seconds for which saves have stopped training.
        validation: Seconds in validations.
        all_reduce: Seconds a step for which the sum of gradients was waited for with nothing left to compute; negative
            where that is not known.
        host_memory: Resident bytes of this process.
        device_memory: The most bytes that were allocated on its device.
        flops: Floating-point operations of this rank's batches; 0 where the model does not say.
    """

    seconds: float
    steps: float
    samples: float
    data: float
    forward_backward: float
    optimizer: float
    p50: float
    p95: float
    longest: float
    saves: float
    validation: float
    all_reduce: float
    host_memory: float
    device_memory: float
    flops: float


def summed_up(ranks: Sequence[RankFigures], hosts: Sequence[str], processes: int) -> dict[str, Any]:
    """Return the figures of one window; what is not known is left out.

    Args:
        ranks: What each measured, by rank.
        hosts: Their hosts.
        processes: Ranks of a node.
    """
    first, seconds = ranks[0], max(1e-9, *(each.seconds for each in ranks))
    found: dict[str, Any] = {
        "seconds": round(seconds, 3),
        "steps": int(first.steps),
        "samples": int(sum(each.samples for each in ranks)),
        "samples_per_second": sum(each.samples for each in ranks) / seconds,
        "steps_per_second": first.steps / seconds,
        "step_p50": first.p50,
        "step_p95": max(each.p95 for each in ranks),
        "step_max": max(each.longest for each in ranks),
        **_shares(ranks),
        "host_memory": int(max(each.host_memory for each in ranks)),
    }
    if any(each.device_memory for each in ranks):
        found["device_memory"] = int(max(each.device_memory for each in ranks))
    if all(each.flops for each in ranks):
        found["flops_per_second"] = sum(each.flops for each in ranks) / seconds
    found.update(_slowest(ranks, hosts))
    found["nodes"] = [
        _node(ranks[at : at + processes], hosts[at], seconds) for at in range(0, len(ranks), max(processes, 1))
    ]
    return {name: _rounded(value) for name, value in found.items()}


def _shares(ranks: Sequence[RankFigures]) -> dict[str, float]:
    """Return where the time of a window went, means over the ranks, which sum up to 1."""
    names = ("data", "forward_backward", "optimizer", "all_reduce", "saves", "validation")
    sums = dict.fromkeys(names, 0.0)
    for each in ranks:
        seconds = max(each.seconds, 1e-9)
        waited = min(max(each.all_reduce, 0.0) * each.steps, each.forward_backward)
        parts = (each.data, each.forward_backward - waited, each.optimizer, waited, each.saves, each.validation)
        for name, part in zip(names, parts, strict=True):
            sums[name] += part / seconds / len(ranks)
    return {f"share_{name}": value for name, value in sums.items()} | {
        "share_other": max(0.0, 1.0 - sum(sums.values()))
    }


def _slowest(ranks: Sequence[RankFigures], hosts: Sequence[str]) -> dict[str, Any]:
    """Return the rank that the others wait for: it waits least for them; and for how much of a step they do."""
    if len(ranks) == 1 or any(each.all_reduce < 0 for each in ranks) or not ranks[0].p50:
        return {}
    waits = [each.all_reduce for each in ranks]
    slowest = waits.index(min(waits))
    behind = (max(waits) - waits[slowest]) / ranks[0].p50
    return {"slowest_rank": slowest, "slowest_host": hosts[slowest], "slowest_behind": min(behind, 1.0)}


def _node(ranks: Sequence[RankFigures], host: str, seconds: float) -> dict[str, Any]:
    """Return the figures of one node's ranks."""
    found = {
        "host": host,
        "samples_per_second": sum(each.samples for each in ranks) / seconds,
        "share_data": sum(each.data for each in ranks) / len(ranks) / seconds,
        "step_p95": max(each.p95 for each in ranks),
        "host_memory": int(sum(each.host_memory for each in ranks)),
        "device_memory": int(sum(each.device_memory for each in ranks)),
    }
    return {name: _rounded(value) for name, value in found.items()}


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


class StragglerWatch:
    """Names a rank that the others wait for, once it has been the slowest one for a while."""

    BEHIND = 0.1
    """Share of a step that is worth a line."""
    WINDOWS = 3
    """In a row of which the same rank must be the slowest."""

    def __init__(self) -> None:
        self._rank: int | None = None
        self._windows = 0
        self._said: int | None = None

    def see(self, window: dict[str, Any]) -> str | None:
        """Return what to say of it after one more window, None for nothing; each rank is named once until another is.

        Args:
            window: What `summed_up` returned.
        """
        rank, behind = window.get("slowest_rank"), window.get("slowest_behind", 0.0)
        if rank is None or behind < self.BEHIND:
            self._rank, self._windows = None, 0
            return None
        self._windows = self._windows + 1 if rank == self._rank else 1
        self._rank = rank
        if self._windows < self.WINDOWS or rank == self._said:
            return None
        self._said = rank
        return (
            f"rank {rank} on {window['slowest_host']} is slow: the other ranks wait for it "
            f"{100 * behind:.0f} % of each step"
        )
