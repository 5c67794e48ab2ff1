"""How often to save so that a run loses the least time, from what its saves, starts and failures have cost."""

import math
from dataclasses import dataclass

ASSUMED_MTBF_HOURS = 24.0
"""Mean time between failures where none has been observed."""

_SHORTEST = 1.0
"""Seconds: a save costs more than its pause where they are so frequent."""


@dataclass(frozen=True)
class RunCosts:
    """What a run has cost so far. All but `failures` in seconds.

    Attributes:
        pause: For which one save stops training.
        upload: From then until the save is durable, in the background.
        restart: From a failure to the first step, without the steps that are repeated.
        interval: Between two saves, None where it is not known.
        wall: Of all attempts together.
        failures: Attempts that neither came to their end nor were preempted with all their steps saved.
    """

    pause: float
    upload: float
    restart: float
    interval: float | None
    wall: float
    failures: int


def optimal_interval(pause: float, mtbf: float, upload: float = 0.0) -> float:
    """Return the seconds between two saves that lose the least time.

    Daly's higher-order estimate, which for short pauses is Young's sqrt(2 C M): J. T. Daly, "A higher order estimate of
    the optimum checkpoint interval for restart dumps", Future Generation Computer Systems 22 (2006), equation 37;
    J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17 (1974). A save cannot start
    before the last one is durable.

    Args:
        pause: Seconds C for which a save stops training.
        mtbf: Mean seconds M between two failures.
        upload: Seconds that a save needs in the background.
    """
    if pause >= 2 * mtbf:
        best = mtbf
    else:
        ratio = pause / (2 * mtbf)
        best = math.sqrt(2 * pause * mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - pause
    return max(best, upload, _SHORTEST)


def lost_share(every: float, pause: float, mtbf: float, restart: float, upload: float = 0.0) -> float:
    """Return the share of the time that saves, restarts and repeated steps cost at this interval.

    The expected time of a segment under failures at random (a Poisson process) is M e^(R/M) (e^((W+C)/M) - 1), of which
    W is useful: Daly (2006), equation 13. What is not durable yet when the failure comes is lost with the segment.
    """
    if (every + pause + upload) / mtbf > 700 or restart / mtbf > 700:
        return 1.0  # the exponentials below overflow
    whole = mtbf * math.exp((restart + upload) / mtbf) * math.expm1((every + pause) / mtbf)
    return 1 - every / whole


def suggest(costs: RunCosts, mtbf_hours: float | None = None) -> str:
    """Return the suggested checkpoint interval in one line, with what it is worth and what it rests on.

    Args:
        costs: Of the run.
        mtbf_hours: Hours between two failures, as the user knows them.
    """
    mtbf, source = _failures(costs, mtbf_hours)

    def rated(every: float) -> str:
        share = lost_share(every, costs.pause, mtbf, costs.restart, costs.upload)
        return f"{duration(every)} (overhead {100 * share:.2g} %)"

    current = "" if costs.interval is None else f"; current: {rated(costs.interval)}"
    return (
        f"suggested checkpoint interval: {rated(optimal_interval(costs.pause, mtbf, costs.upload))}{current}; a save "
        f"pauses training for {duration(costs.pause)} and uploads for {duration(costs.upload)}, a restart takes "
        f"{duration(costs.restart)}, mean time between failures {duration(mtbf)} ({source})"
    )


def compare(costs: RunCosts) -> str:
    """Return the suggested interval beside that of the run, without what it rests on.

    Args:
        costs: Of the run.
    """
    mtbf, _ = _failures(costs, None)
    now = "" if costs.interval is None else f" (now {duration(costs.interval)})"
    return f"{duration(optimal_interval(costs.pause, mtbf, costs.upload))}{now}"


def _failures(costs: RunCosts, mtbf_hours: float | None) -> tuple[float, str]:
    """Return the mean seconds between two failures, and from where that is known."""
    if mtbf_hours is not None:
        return 3600 * mtbf_hours, "given"
    if costs.failures:
        return costs.wall / costs.failures, f"{costs.failures} seen"
    return 3600 * ASSUMED_MTBF_HOURS, "assumed, none seen"


def duration(seconds: float) -> str:
    """Return `0.02 s`, `12 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    return f"{minutes} min {whole % 60:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
