"""Runs that never trained: the records that real ones leave, written by hand, for those who only read them."""

from dataclasses import asdict
from typing import Any

import yaml

from pipeline.run.goodput import PURPOSES
from pipeline.run.run_dir import LEASE, RunDir
from tests.support.checkpoints import a_record

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {"accelerator": "auto", "precision": None, "max_epochs": 20, "max_steps": -1},
    "model": {"class_path": "m.Model", "init_args": {"learning_rate": 0.1, "layers": [8, 8]}},
    "data": {"class_path": "pipeline.data.DataModule", "init_args": {"batch_size": 16}},
}


def goodput(useful: float, starting: float) -> dict[str, Any]:
    seconds = {**dict.fromkeys(PURPOSES, 0.0), "useful": useful, "starting": starting}
    return {
        "share": useful / (useful + starting),
        "seconds": seconds,
        "saves": 1,
        "stop_seconds": 0.1,
        "behind_seconds": 0.2,
    }


def attempt(number: int = 1, status: int | None = 0, **more: Any) -> dict[str, Any]:
    """The record of an attempt of a minute; without a status, of one that has not ended."""
    began = {"attempt": number, "launch": "x", "host": "elsewhere", "world_size": 2}
    steps = {"first_step": 0, "resumed_from": None, "last_step": 4, "reached_step": 4, "committed_step": 4}
    started, ended = (f"2026-11-24T12:{10 * number + minute:02}:00.000Z" for minute in (0, 1))
    reason = {None: None, 0: "done", 75: "preempted: step 4 is durable"}.get(status, "crash: x")
    end = {"ended": None if status is None else ended, "status": status, "reason": reason}
    return {**began, "started": started, **end, **steps, "goodput": goodput(45, 15), **more}


def recorded(url: str, *attempts: dict[str, Any], **config: Any) -> RunDir:
    """Write a run with these attempts, commits at steps 2 and 4, and a configuration with these flags changed."""
    run = RunDir(url)
    for each in attempts:
        run.write_json(RunDir.attempt(each["attempt"]), each)
    for step, value in ((2, 0.25), (4, 0.5)):
        run.write(RunDir.checkpoint(step), b"x" * step)
        run.write_json(RunDir.record(step), asdict(a_record(step, value)))
    model = {**CONFIG["model"], "init_args": {**CONFIG["model"]["init_args"], **config}}
    run.write(RunDir.config("fit"), yaml.safe_dump({**CONFIG, "model": model}, sort_keys=False).encode())
    return run


def lease(run: RunDir, **more: Any) -> None:
    """Write the lease of a process of another machine, as it is renewed now."""
    value = {"attempt": 1, "launch": "x", "host": "elsewhere", "pid": 1, "process": None, "token": "t", "seconds": 60}
    run.write_json(LEASE, {**value, "renewed": "2026-11-24T12:11:00.000Z", "goodput": goodput(30, 30), **more})
