"""How often to save so that a run loses least, from what its saves, starts and failures have cost."""

import math
from dataclasses import dataclass

ASSUMED_HOURS = 24.0
"""Between two failures, where none has been seen."""

_LEAST = 1.0
"""Seconds: a save costs more than its stop where they come so often."""


@dataclass(frozen=True)
class Costs:
    """What a run has cost so far. All but `failures` in seconds.

    Attributes:
        stop: For which a save stops training.
        behind: That a save needs behind training until it is durable.
        restart: From a failure to the first step, without the steps that are repeated.
        interval: Between two saves, None where it is not known.
        wall: Of all attempts together.
        failures: Attempts that neither came to their end nor were preempted with all that they had done.
    """

    stop: float
    behind: float
    restart: float
    interval: float | None
    wall: float
    failures: int


def interval(stop: float, mtbf: float, behind: float = 0.0) -> float:
    """The time between two saves that loses least, in seconds.

    Daly's higher-order estimate, which for short stops is Young's sqrt(2 C M): J. T. Daly, "A higher order estimate of
    the optimum checkpoint interval for restart dumps", Future Generation Computer Systems 22 (2006), equation 37;
    J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17 (1974). A save cannot begin
    before the last one is durable.

    Args:
        stop: Seconds C for which a save stops training.
        mtbf: Mean seconds M between two failures.
        behind: Seconds that a save needs behind training.
    """
    if stop >= 2 * mtbf:
        best = mtbf
    else:
        ratio = stop / (2 * mtbf)
        best = math.sqrt(2 * stop * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stop
    return max(best, behind, _LEAST)


def lost(every: float, stop: float, mtbf: float, restart: float, behind: float = 0.0) -> float:
    """The share of the time that is lost to saves, restarts and repeated steps, if one saves every so many seconds.

    The expected time of a segment under failures at random (a Poisson process) is M e^(R/M) (e^((W+C)/M) - 1), of which
    W is useful: Daly (2006), equation 13. What is not durable yet when the failure comes is lost with the segment.
    """
    if (every + stop + behind) / mtbf > 700 or restart / mtbf > 700:
        return 1.0
    whole = mtbf * math.exp((restart + behind) / mtbf) * math.expm1((every + stop) / mtbf)
    return 1 - every / whole


def advice(costs: Costs, mtbf_hours: float | None = None) -> str:
    """In a sentence: how often to save, and what that is worth.

    Args:
        costs: Of the run.
        mtbf_hours: Hours between two failures, if somebody knows better than what was seen.
    """
    if mtbf_hours is not None:
        mtbf, source = 3600 * mtbf_hours, f"one failure in {duration(3600 * mtbf_hours)} (as given)"
    elif costs.failures:
        mtbf = costs.wall / costs.failures
        source = f"one failure in {duration(mtbf)} ({costs.failures} seen)"
    else:
        mtbf, source = 3600 * ASSUMED_HOURS, f"one failure in {duration(3600 * ASSUMED_HOURS)} (assumed: none was seen)"
    best = interval(costs.stop, mtbf, costs.behind)
    known = costs.stop, mtbf, costs.restart, costs.behind
    text = (
        f"saving every {duration(best)} would lose least, {100 * lost(best, *known):.2g} %: a save stops training for "
        f"{duration(costs.stop)} and takes {duration(costs.behind)} behind it, a restart takes "
        f"{duration(costs.restart)}, {source}"
    )
    if costs.interval is not None:
        now = 100 * lost(costs.interval, *known)
        text += f"; it is saved every {duration(costs.interval)} now, which loses {now:.2g} %"
    return text


def duration(seconds: float) -> str:
    """`0.02 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    return f"{minutes} min {whole % 60:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
