"""What the promises cost of a step, timed where it arises: in a comparison of whole steps it is below the noise."""

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.data.ledger import Ledger
from pipeline.training.stop_vote import StopVote
from pipeline.training.telemetry.step_clock import StepClock
from pipeline.training.telemetry.telemetry import Telemetry
from tests.benchmarks.processes import forked
from tests.benchmarks.steps import Work, fit
from tests.benchmarks.subject import OURS, Bar, Contenders, Context, Reading, subject

CALLS: dict[str, list[tuple[Any, tuple[str, ...]]]] = {
    "% of a step in the ledger": [(Ledger, ("open", "count", "close"))],
    "% of a step in the stop vote": [(StopVote, ("poll",))],
    "% of a step in telemetry": [
        (StepClock, ("waits", "starts", "has_gradients")),
        (Telemetry, ("after_batch", "at_boundary")),  # the last window is written once, after the last step
    ],
}


def timed_in_place(method: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The method, adding the seconds of each of its calls to `spent`."""

    def call(*arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return method(*arguments, **named)
        finally:
            spent[0] += time.perf_counter() - begin

    return call


def shares(work: Work, folder: Path) -> Reading:
    """Train, and time these calls over all steps."""
    spent: dict[str, list[float]] = {}
    for quantity, owners in CALLS.items():
        spent[quantity] = [0.0]
        for owner, name in ((owner, name) for owner, names in owners for name in names):
            setattr(owner, name, timed_in_place(getattr(owner, name), spent[quantity]))
    found = fit(work, folder)
    step = found["wall"] * work.steps / 1e6
    return {quantity: 100 * seconds[0] / step for quantity, seconds in spent.items()} | {"us a step": found["wall"]}


@subject("parts", unit="us a step", bars=tuple(Bar(OURS, quantity, limit=0.5) for quantity in CALLS), rounds=(1, 3, 7))
def parts(context: Context) -> Contenders:
    """Calls of the ledger, the stop vote and telemetry in a step of the autoencoder, 2 ranks."""
    work = Work(context.pick(4, 100, 200), context.pick(4, 200, 1000), ranks=2)

    def turn() -> Reading:
        folder = context.folder / uuid.uuid4().hex[:8]
        folder.mkdir()
        found: Reading = forked(shares, work, folder, ranks=2, log=folder / "log.txt")
        return found

    return {OURS: turn}
