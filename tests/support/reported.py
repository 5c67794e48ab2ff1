"""Runs with everything that a report tells, written by hand."""

import io
import json
import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
from PIL import Image

from pipeline.run.run_dir import PICTURES, RECEIPT, SCORES, RunDir
from tests.support.event_logs import event_file
from tests.support.recorded import attempt, recorded

VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "lightning": "2.6.6"}


def window(step: int, time: float = 1e9, **more: Any) -> dict[str, Any]:
    """A line of telemetry, as after ten seconds of training on two nodes."""
    nodes = [
        {"host": host, "samples_per_second": rate, "share_data": 0.1, "step_p95": 0.03, "host_memory": 2e9}
        for host, rate in (("a", 900.0), ("b", 880.0))
    ]
    shares = {"share_data": 0.1, "share_forward_backward": 0.6, "share_optimizer": 0.1, "share_all_reduce": 0.1}
    rest = {"share_saves": 0.02, "share_validation": 0.03, "share_other": 0.05}
    return {
        "time": time + step,
        "step": step,
        "epoch": step // 100,
        "seconds": 10.0,
        "steps": 10,
        "samples": 640,
        "samples_per_second": 1780.0 + 100 * math.sin(step / 9),
        "steps_per_second": 28.0,
        "step_p50": 0.02,
        "step_p95": 0.03,
        "step_max": 0.2,
        "host_memory": 2e9 + 1e6 * step,
        "slowest_rank": 1,
        "slowest_host": "b",
        "slowest_behind": 0.04,
        "goodput": 0.8,
        "nodes": nodes,
        **shares,
        **rest,
        **more,
    }


def telemetry_part(number: int, *windows: dict[str, Any]) -> bytes:
    """A part of the telemetry of an attempt."""
    header = {"schema": 1, "attempt": number, "world_size": 2, "nodes": 2, "hosts": ["a", "b"], "device": "cpu"}
    return b"".join(json.dumps(line).encode() + b"\n" for line in (header, *windows))


def receipt(**more: Any) -> dict[str, Any]:
    """The receipt of an evaluation that scored each of 200 samples once."""
    return {
        "checkpoint": "x/checkpoints/step-00000004.ckpt",
        "checkpoint_sha256": "sha256:00",
        "dataset": "d.Digits",
        "samples_expected": 200,
        "samples_scored": 200,
        "duplicates": 0,
        "missing": 0,
        "devices": 1,
        "metrics": {"test_loss": 0.035898, "broken": None},
        "unproven": [],
        "seconds": 1.5,
        "created": "2026-11-24T12:40:00.000Z",
        **more,
    }


def picture(shade: int) -> bytes:
    """A small PNG."""
    data = io.BytesIO()
    Image.fromarray(np.full((8, 8), shade, np.uint8)).save(data, "PNG")
    return data.getvalue()


def reported(url: str, scale: float = 1.0, steps: int = 400, **config: Any) -> RunDir:
    """Write a run of two attempts, the second of which resumed in the middle, with all that a report shows of it.

    Args:
        url: Of the run directory.
        scale: Of what it logged.
        steps: It logged each tenth of them.
        config: Flags of its model.
    """
    half = steps // 2
    more = {"nodes": 2, "versions": VERSIONS, "revision": "0" * 40, "image": None}
    run = recorded(
        url,
        attempt(1, 75, first_step=0, reached_step=half + 20, **more),
        attempt(2, 0, first_step=half, reached_step=steps, resumed_from="storage", **more),
        **config,
    )
    # As attempt 1 and 2 of `recorded` start at 12:10 and 12:20 on that day.
    began = datetime(2026, 11, 24, 12, 10, tzinfo=UTC).timestamp()
    run.write("logs/events.out.tfevents.1.a.1.0", event_file(_logged(0, half + 20, scale), began + 5))
    run.write("logs/events.out.tfevents.2.a.1.0", event_file(_logged(half, steps, scale), began + 605))
    windows = [window(step) for step in range(0, steps, 10)]
    run.write("logs/telemetry/0001-0001.jsonl", telemetry_part(1, *windows[: half // 10]))
    run.write("logs/telemetry/0002-0001.jsonl", telemetry_part(2, *windows[half // 10 :]))
    run.write_json(RECEIPT, receipt())
    errors = np.random.default_rng(0).gamma(3, 0.01, 200)
    rows = [f"{index},{error},{index % 3 > 0}" for index, error in enumerate(errors)]
    run.write(SCORES, "\n".join(["index,reconstruction_error,correct", *rows, ""]).encode())
    ends: dict[str, Any] = {"lowest": [], "highest": []}
    for place in range(1, 9):
        for end, shade in (("lowest", 20 * place), ("highest", 255 - 20 * place)):
            run.write(f"{PICTURES}/{end}-{place}.png", picture(shade))
            ends[end].append({"index": place, "score": place / 100, "file": f"{end}-{place}.png"})
    run.write_json(f"{PICTURES}/pictures.json", {"column": "reconstruction_error", **ends})
    return run


def _logged(first: int, last: int, scale: float) -> list[tuple[str, int, float]]:
    points = []
    for step in range(first, last, 10):
        points.append(("train_loss", step, scale * (0.05 + 1 / (step + 2))))
        points.append(("epoch", step, float(step // 100)))
        if step % 50 == 0:
            points.append(("val_loss", step, scale * (0.06 + 1 / (step + 2))))
            points.append(("lr-Adam", step, 0.003))
    return points
