"""What became of one fault of a drill, and whether it is as it must be."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.commands.drill.plan import Fault, FaultKind
from pipeline.commands.drill.step_log import StepEntry
from pipeline.errors import PREEMPTED


@dataclass
class FaultResult:
    """What became of one fault.

    Attributes:
        fault: As planned.
        injected: Whether it was: training may have ended before.
        step: Rank 0's last step before it; None: it had done none since its start.
        ended: The statuses of the agents that ended, in their order.
        resumed: The step that came next; None: another fault came first.
        repeated: Number of steps that were done again.
        seconds: Until a step that had never been done; None: another fault came first.
        problems: What is not as it must be.
        source: From where it resumed: `memory` or `storage`; None: another fault came first, or there was nothing.
    """

    fault: Fault
    injected: bool = False
    step: int | None = None
    ended: list[int] = field(default_factory=list)
    resumed: int | None = None
    repeated: int = 0
    seconds: float | None = None
    problems: list[str] = field(default_factory=list)
    source: str | None = None

    @property
    def held(self) -> bool:
        """Whether it was injected, and nothing was lost."""
        return self.injected and not self.problems


@dataclass
class JobBefore:
    """The job right before a fault.

    Attributes:
        entries: Rank 0's in the step log.
        pid: Rank 0's process, None where it does not run.
        durable: The newest committed step, which must survive.
    """

    entries: int
    pid: int | None
    durable: int


def judge(
    result: FaultResult, before: JobBefore, entries: Sequence[StepEntry], durable_at_restart: int | None, nodes: int
) -> None:
    """Compare what came after a fault with what must have, and note what differs.

    Args:
        result: Of the fault.
        before: The job right before it.
        entries: Rank 0's in the step log, those of before among them.
        durable_at_restart: The newest committed step when the job was restarted, None where it was not.
        nodes: Of the job.
    """
    kind, problems = result.fault.kind, result.problems
    own = [entry for entry in entries if entry.pid == before.pid]
    reached = own[-1].step if own else before.durable
    later = _of_new_process(before, entries)
    if kind is FaultKind.OUTAGE:
        if result.ended or later:
            problems.append(f"the outage ended processes (agents: {result.ended or 'none'})")
        return
    saved = kind.asks and bool(own)
    if saved or kind is FaultKind.TERM_TWICE:
        problems += [] if result.ended else ["no agent ended"]
        problems += [f"an agent ended with {status}" for status in result.ended if status != PREEMPTED]
    if kind in (FaultKind.OUTAGE_START, FaultKind.OUTAGE_DATA):  # whose agents were killed once
        problems += [f"an agent ended with {status}" for status in result.ended[nodes:]]
    if saved and durable_at_restart is not None and durable_at_restart < reached:
        problems.append(f"step {reached} was done, but only step {durable_at_restart} was durable")
    if later:
        result.resumed = later[0].step
        # Also what an earlier fault has cost, after which no step was done.
        earlier = entries[: entries.index(later[0])]
        result.repeated = max(0, earlier[-1].step + 1 - result.resumed) if earlier else 0
        durable = reached if saved else before.durable
        if result.resumed <= durable:
            problems.append(f"it resumed with step {result.resumed}, though step {durable} was durable")
        if own and result.resumed > reached + 1:
            problems.append(f"it resumed with step {result.resumed}, though step {reached} was its last")


def new_step(fault: Fault, before: JobBefore, entries: Sequence[StepEntry]) -> StepEntry | None:
    """Return the first step after a fault that rank 0 had never done before."""
    if fault.kind is FaultKind.OUTAGE:
        return next(iter(entries[before.entries :]), None)
    old = [entry.step for entry in entries if entry.pid == before.pid] + [e.step for e in entries[: before.entries]]
    return next((entry for entry in _of_new_process(before, entries) if entry.step > max(old, default=0)), None)


def _of_new_process(before: JobBefore, entries: Sequence[StepEntry]) -> list[StepEntry]:
    """Return what rank 0 has logged since a fault in another process than before."""
    return [entry for entry in entries[before.entries :] if entry.pid != before.pid]
