"""How long a crash stops training: from kill -9 of a rank to the next step, against a cold start to the first step.

python -m tests.benchmarks.restart
"""

import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

from tests.support.sigterm_trials import Job, job

ROUNDS = 5


def next_step(training: Job, known: int, began: float) -> float:
    """Seconds until a rank notes a step more."""
    while len(training.steps(0)) <= known:
        assert time.monotonic() - began < 60, training.said
        time.sleep(0.01)
    return time.monotonic() - began


def main() -> None:
    """Measure, and print."""
    found = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            with job(Path(folder), "--checkpoints.every_n_steps=10", "--trainer.max_epochs=2000", join=60) as training:
                cold = next_step(training, 0, began)
                training.until_step(30)
                began = time.monotonic()
                os.kill(training.rank(1), signal.SIGKILL)
                while training.alive(0):  # its steps until it notices are old ones
                    time.sleep(0.005)
                found.append((cold, next_step(training, len(training.steps(0)), began)))
    ratios = [again / cold for cold, again in found]
    print(f"cold start {statistics.median(cold for cold, _ in found):.1f} s")
    print(
        f"restart {statistics.median(again for _, again in found):.1f} s, "
        f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} .. {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
