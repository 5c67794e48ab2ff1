"""Why a pod is not there: the delay of the Job controller."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from k8s.manifests import objects
from k8s.options import RunOptions
from k8s.snapshot import RunSnapshot
from k8s.status import described
from tests.support.k8s_parts import Object, app, status_of

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
LAUNCH = " or longer (python -m components.launch and kind=jobset do not wait)"


def pod_of(job: Object, index: int, at: int, phase: str = "Failed", **how: Any) -> Object:
    """A pod that was created, and if so ended, some seconds after the start."""
    when = (START + timedelta(seconds=at)).isoformat()
    labels = {**job["spec"]["template"]["metadata"]["labels"], "batch.kubernetes.io/job-completion-index": str(index)}
    metadata = {"name": f"one-train-{index}-{at}", "labels": labels, "creationTimestamp": when}
    status = status_of(phase, **how)
    for container in status["containerStatuses"]:
        container["state"].get("terminated", {})["finishedAt"] = when
    return {"metadata": metadata, "spec": job["spec"]["template"]["spec"], "status": status}


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ([(0, 0, 75)], "1 ended pod the Job controller waits for 10 s, until 12:00:10 UTC"),
        ([(0, 0, 75), (1, 9, 75)], "2 ended pods the Job controller waits for 20 s, until 12:00:29 UTC"),
        ([(0, 0, 75), (0, 40, 75)], "2 ended pods the Job controller waits for 20 s, until 12:01:00 UTC"),
        ([(index, 0, 75) for index in range(4)], "4 ended pods the Job controller waits for 80 s, until 12:01:20 UTC"),
        ([(0, at, 75) for at in range(20)], "20 ended pods the Job controller waits for 600 s, until 12:10:19 UTC"),
        ([(0, 0, 1)], "1 ended pod the Job controller waits for 10 s, until 12:00:10 UTC"),
    ],
)
def test_the_delay_before_a_pod_is_replaced_is_said(ends: list[tuple[int, int, int]], words: str) -> None:
    preempted = ends[0][2] == 75
    job = objects(app("4"), "one", RunOptions())[0]
    pods = [pod_of(job, index, at, code=code) for index, at, code in ends]
    assert described("one", RunSnapshot([job], pods)).msg.endswith(f"; after {words}{LAUNCH if preempted else ''}")
    there = [pod_of(job, index, 700, "Running") for index, _, _ in ends]
    assert "Job controller" not in described("one", RunSnapshot([job], [*pods, *there])).msg
