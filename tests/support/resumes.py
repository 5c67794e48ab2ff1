"""What must hold of a resumed run: it ends like one that was never interrupted, bit for bit."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoint.commit import newest
from pipeline.run.run_dir import RunDir
from pipeline.training.checkpoint_io import RunIO

BASE = (
    *(
        "fit",
        "--model=tests.support.models.Thorough",
        "--data=pipeline.data.DataModule",
        "--data.train=tests.support.models.Noisy",
    ),
    *("--data.val=tests.support.models.Rows", "--data.batch_size=16", "--trainer.enable_model_summary=false"),
    *("--trainer.max_epochs=3", "--trainer.log_every_n_steps=1", "--checkpoints.every_n_steps=1"),
)


GRID = [pytest.param(False, id="few steps"), pytest.param(True, id="all steps", marks=pytest.mark.slow)]
"""How many of a case's steps are resumed from: the first 2 or 3, or all of them."""
# 101 samples make 7 batches of 16. Of each case: a step at the start, the last one of an epoch and one of the last
# epoch; then the steps around those.
CASES: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "plain": ((), (1, 7, 20, 4, 6, 8, 13, 14)),
    "two workers": (("--data.num_workers=2",), (6, 9)),
    "no validation set": (("--data.val=null", "--model=tests.support.models.Estimating"), (9, 20, 7, 14, 16)),
    "accumulation": (("--trainer.accumulate_grad_batches=2",), (1, 4, 11, 3, 5)),
    "validation within an epoch": (("--trainer.val_check_interval=3",), (3, 7, 13, 2, 4, 10)),
    "validation by total batches": (
        ("--trainer.val_check_interval=4", "--trainer.check_val_every_n_epoch=null"),
        (4, 8, 12, 3, 5),
    ),
    "limit as int": (("--trainer.limit_train_batches=4",), (1, 4, 11, 3, 5)),
    "limit as float": (("--trainer.limit_train_batches=0.5",), (1, 3, 8, 2, 4)),
    "estimated steps": (("--model=tests.support.models.Estimating",), (1, 7, 20, 9)),
    "the rest skipped": (("--model.skip_after=5",), (1, 5, 14, 4, 6)),
    "accumulated and skipped": (("--model.skip_after=5", "--trainer.accumulate_grad_batches=2"), (1, 3, 5, 2)),
    "drop last": (("--data.drop_last=true",), (1, 6, 17, 7)),
    "max steps": (("--trainer.max_epochs=-1", "--trainer.max_steps=17"), (1, 7, 16, 6, 8)),
    "another optimizer loop": (("--trainer.gradient_clip_val=0.1",), (5, 9)),
}


WEIGHTS = ("global_step", "state_dict", "optimizer_states", "lr_schedulers")


PARTS = (*WEIGHTS, "epoch", "loops", "pipeline")


def state(run: str) -> dict[str, Any]:
    record = newest(RunDir(run))
    assert record is not None
    return RunIO(None).load_checkpoint(RunDir(run).url_of(record.name))


def equal(left: Any, right: Any) -> bool:
    """Bit for bit, through every container."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def same_end(straight: Path, resumed: Path, parts: tuple[str, ...] = PARTS) -> None:
    left, right = state(str(straight)), state(str(resumed))
    for part in parts:
        assert equal(left[part], right[part]), (part, difference(left[part], right[part]))


def difference(left: Any, right: Any, at: str = "") -> list[str]:
    """Where two states differ, for the reader of a failure."""
    if isinstance(left, dict) and isinstance(right, dict):
        keys = [*left, *(key for key in right if key not in left)]
        return [line for key in keys for line in difference(left.get(key), right.get(key), f"{at}/{key}")]
    return [] if equal(left, right) else [f"{at}: {left!r:.60} {right!r:.60}"]


def only(straight: Path, run: Path, step: int) -> None:
    """A run that was killed right after it had saved a step."""
    run.mkdir(parents=True)
    shutil.copy(straight / "fit.yaml", run)
    (run / "checkpoints").mkdir()
    for name in (RunDir.checkpoint(step), RunDir.record(step)):
        shutil.copy(straight / name, run / name)
