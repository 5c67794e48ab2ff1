"""A stand-in for fit in a sweep: the records of a run without a model, in half a second.

    python -m tests.support.swept <run_dir> --values 0.3,0.2 [--status 1] [--seconds 0.1] [--name val_loss]

It commits a checkpoint with each value, resumes after those that are committed, ends with 75 at SIGTERM, and holds the
lease of its run.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence

from pipeline.checkpoint.commit import CommitRecord, Monitor, write_record
from pipeline.run.lease import Lease, launch_id
from pipeline.run.run_dir import RunDir, now


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir")
    parser.add_argument("--values", default="")
    parser.add_argument("--name", default="val_loss")
    parser.add_argument("--status", type=int, default=0)
    parser.add_argument("--reason", default="done")
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--refuse", default="")
    given = parser.parse_args(arguments)
    if given.refuse:
        print(f"error: {given.refuse}", file=sys.stderr)
        return 2
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    run = RunDir(given.run_dir)
    lease = Lease.take(run, launch_id())
    record = {"attempt": lease.attempt, "started": now(), "ended": None, "status": None, "reason": None}
    run.write_json(RunDir.attempt(lease.attempt), record)
    logged: list[tuple[str, int, float]] = []
    values = [float(each) for each in given.values.split(",") if each]
    for step, value in enumerate(values, 1):
        if step in run.steps()["json"]:
            continue
        time.sleep(given.seconds)
        if asked:
            break
        logged.append((given.name, step, value))
        _log(run, lease.attempt, logged)
        _commit(run, step, Monitor.of(given.name, value, "min"))
    status, reason = (75, "preempted") if asked else (given.status, given.reason)
    run.write_json(RunDir.attempt(lease.attempt), {**record, "ended": now(), "status": status, "reason": reason})
    lease.release()
    return status


def _log(run: RunDir, attempt: int, logged: list[tuple[str, int, float]]) -> None:
    from tests.support.event_logs import event_file

    run.write(f"logs/events.out.tfevents.{attempt}.host.1.0", event_file(logged, began=float(attempt)))


def _commit(run: RunDir, step: int, monitor: Monitor | None) -> None:
    run.write(RunDir.checkpoint(step), b"weights")
    write_record(run, CommitRecord(step, step, None, 7, "sha256:0", monitor, 1, now(), ["validation"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
