"""What became of one fault of a drill."""

from dataclasses import dataclass, field

from pipeline.commands.drill.plan import Fault


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
    """

    fault: Fault
    injected: bool = False
    step: int | None = None
    ended: list[int] = field(default_factory=list)
    resumed: int | None = None
    repeated: int = 0
    seconds: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether it was injected, and nothing was lost."""
        return self.injected and not self.problems
