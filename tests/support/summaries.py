"""Summaries of runs that no storage holds."""

from datetime import UTC, datetime
from typing import Any

from pipeline.checkpoint.commit import Monitor
from pipeline.checkpoint.run_summary import RunCondition, RunSummary


def a_run(name: str, value: float | None = None, mode: str = "min", **more: Any) -> RunSummary:
    """Return a finished run of the folder `runs`, with the best value of val_loss if there is one."""
    best = None if value is None else Monitor("val_loss", value, mode)
    started = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
    known = {"state": RunCondition.FINISHED, "status": 0, "started": started, "best": best, "best_step": 2}
    return RunSummary(url=f"/w/runs/{name}", label=f"runs/{name}", **{**known, **more})
