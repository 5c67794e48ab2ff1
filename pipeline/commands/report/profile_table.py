"""What the profiled steps of an attempt spent their time on, as `fit --profile` left it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.commands.report.figure import PageTable
from pipeline.commands.report.formats import NONE, count, finite, share
from pipeline.run.run_dir import LOGS, RunDir

_FOLDER = f"{LOGS}/profile"
_ATTEMPT = re.compile(r"attempt-(\d{4,})")
_RANK = re.compile(r"rank-(\d+)\.json")
_RANKS = 64
"""Of an attempt that are shown, at most."""


@dataclass(frozen=True)
class RankProfile:
    """The profiled steps of one rank.

    Attributes:
        attempt: Its number.
        rank: Of the process.
        first_step: The first of the steps.
        steps: Their number.
        operators: The most expensive ones: name, calls, share, and microseconds of their own on CPU and device.
    """

    attempt: int
    rank: int
    first_step: int
    steps: int
    operators: Sequence[Mapping[str, Any]]


def read_profiles(run: RunDir) -> list[RankProfile]:
    """Return the profiles of the newest attempt that has some, by rank; what is damaged is left out.

    Raises:
        Exception: The storage does not answer.
    """
    attempts = sorted((int(match[1]), match[0]) for match in map(_ATTEMPT.fullmatch, run.names(_FOLDER)) if match)
    for attempt, folder in reversed(attempts):
        names = run.names(f"{_FOLDER}/{folder}")
        ranks = sorted((int(match[1]), match[0]) for match in map(_RANK.fullmatch, names) if match)[:_RANKS]
        files = run.read_jsons(f"{_FOLDER}/{folder}/{name}" for _, name in ranks)
        found = [_profile(attempt, rank, files[f"{_FOLDER}/{folder}/{name}"] or {}) for rank, name in ranks]
        if profiles := [each for each in found if each is not None]:
            return profiles
    return []


def profile_table(profile: RankProfile) -> PageTable:
    """Return the most expensive operators of one rank."""
    on_device = any(finite(each.get("self_device_microseconds")) for each in profile.operators)
    key = "self_device_microseconds" if on_device else "self_cpu_microseconds"
    rows = [
        (
            str(each.get("name", NONE)),
            *(count(each.get("calls")), share(finite(each.get("share")) or 0.0)),
            f"{(finite(each.get(key)) or 0.0) / 1000:,.1f}",
        )
        for each in profile.operators
    ]
    last = profile.first_step + profile.steps - 1
    where = "the device" if on_device else "the CPU"
    caption = f"Rank {profile.rank}, steps {profile.first_step:,} to {last:,} of attempt {profile.attempt}, on {where}"
    return PageTable(("operator", "calls", "share", "ms of its own"), rows, caption=caption)


def _profile(attempt: int, rank: int, value: Mapping[str, Any]) -> RankProfile | None:
    operators, first, steps = value.get("operators"), value.get("first_step"), value.get("steps")
    if not isinstance(operators, list) or not isinstance(first, int) or not isinstance(steps, int):
        return None
    return RankProfile(attempt, rank, first, steps, [each for each in operators if isinstance(each, dict)])
