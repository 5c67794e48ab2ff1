"""A short run over numbered samples, that a test resumes with something changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.commands import Ended

App = Callable[..., Ended]
BASE = (
    *(
        "fit",
        "--model=tests.support.killable.Noting",
        "--data=pipeline.data.DataModule",
        "--data.train=tests.support.models.Indexed",
    ),
    *("--data.val=tests.support.models.Rows", "--data.batch_size=16", "--trainer.enable_model_summary=false"),
    *("--checkpoints.every_n_steps=1",),
)


def copied_run(app: App, base: Path, tmp_path: Path) -> Path:
    """A copy of a run at step 10, in epoch 1 at position 48, which is trained once below `base`."""
    trained = base / "numbered" / "run"
    if not trained.exists():
        trained.parent.mkdir()
        assert fit(app, trained, 10).status == 0
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def fit(app: App, run: Path, steps: int, *more: str) -> Ended:
    return app(
        *(*BASE, "--run_dir", run, f"--model.notes={run.parent / 'notes'}", "--trainer.max_epochs=-1"),
        *(f"--trainer.max_steps={steps}", *more),
    )


def notes(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.parent / "notes-0.jsonl").read_text().splitlines()]
