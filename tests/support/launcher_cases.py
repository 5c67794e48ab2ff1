"""What can happen to a training, and one body that tries it on any launcher that is really there.

docs/launchers.md shows the same table to users.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.run.run_dir import RECEIPT, RunDir
from tests.support.commands import DIGITS, Ended, command

STEPS = 40
"""Of one epoch of the digits on two processes."""


@dataclass(frozen=True)
class Launcher:
    """How to launch, and what the launcher does by itself when a node ends.

    Attributes:
        arguments: Of the driver.
        restarts: Whether it starts a node that was lost again, within `--retries`.
        continues: Whether it starts a preempted training again.
        runs: Its own name of the folder in which the runs lie.
    """

    arguments: tuple[str, ...]
    restarts: bool
    continues: bool
    runs: str = ""


@dataclass(frozen=True)
class Case:
    """What happens.

    Attributes:
        arguments: Of the app.
        fault: Of `own.Fault`; empty for none.
        times: How many starts it harms.
        expected: The exit status and the number of attempts that a launcher leaves.
        told: What its output says, each once or more.
    """

    expected: Callable[[Launcher], tuple[int, int]]
    arguments: tuple[str, ...] = ()
    fault: str = ""
    times: int = 1
    told: tuple[str, ...] = ()


CASES = {
    "done": Case(lambda _: (0, 1), told=("360 of 360, once each",)),
    "user's mistake": Case(
        lambda _: (2, 0), ("--model.learning_rate=fast",), told=("model.learning_rate", "train: failed with status 2")
    ),
    "crash": Case(lambda _: (0, 2), fault="crash", told=("a fault of the model's own", "360 of 360, once each")),
    "crash at each start": Case(
        lambda launcher: (1, 4 if launcher.restarts else 2),
        fault="crash",
        times=99,
        told=("a fault of the model's own", "train: failed with status 1"),
    ),
    "a rank killed": Case(lambda _: (0, 2), fault="rank", told=("SIGKILL", "360 of 360, once each")),
    "an agent killed": Case(lambda launcher: (0, 2) if launcher.restarts else (1, 1), fault="agent"),
    "preempted": Case(
        lambda launcher: (0, 2) if launcher.continues else (75, 1), fault="preempt", told=("preempted at step",)
    ),
}
"""By name; all with one restart in place and one by the launcher."""


def tried(case: Case, launcher: Launcher, folder: Path, **options: Any) -> Ended:
    """Launch on two nodes, and check how it ends.

    Args:
        case: What happens.
        launcher: Where.
        folder: Where the runs lie, as this machine sees it.
        options: Of `command`.
    """
    runs = launcher.runs or str(folder)
    harm = [
        "--trainer.callbacks+=own.Fault",
        f"--trainer.callbacks.kind={case.fault}",
        f"--trainer.callbacks.marks={runs}/marks",
        f"--trainer.callbacks.times={case.times}",
    ]
    ended = command(
        *(sys.executable, "-m", "components.launch", *launcher.arguments, "--config", DIGITS, "--cpu", "1"),
        *("--nodes", "2", "--max_restarts", "1", "--retries", "1", "--join_timeout", "30", "--run_dir", f"{runs}/one"),
        *("--", "--trainer.max_epochs=2", "--checkpoints.every_n_steps=10", "--trainer.enable_model_summary=false"),
        *("--collective_timeout=5", *(harm if case.fault else ()), *case.arguments),
        **options,
    )
    run = RunDir(str(folder / "one"))
    assert (ended.status, len(run.attempts())) == case.expected(launcher), ended.text
    for words in case.told:
        assert words in ended.text
    assert (run.read_json(RECEIPT) is not None) == (ended.status == 0)
    if ended.status == 2:
        assert "Traceback" not in ended.text
    return ended
