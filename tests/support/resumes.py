"""What must hold of a resumed run: it ends like one that was never interrupted, bit for bit."""

import shutil
from pathlib import Path
from typing import Any

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


# 101 samples make 7 batches of 16: the first and last steps of the first, second and last epoch, and one in between.
STEPS = (1, 4, 6, 7, 8, 13, 14, 20)


CASES: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "plain": ((), STEPS),
    "two workers": (("--data.num_workers=2",), (6, 9)),
    "accumulation": (("--trainer.accumulate_grad_batches=2",), (1, 3, 4, 5, 11)),
    "validation within an epoch": (("--trainer.val_check_interval=3",), (2, 3, 4, 7, 10, 13)),
    "validation by total batches": (
        ("--trainer.val_check_interval=4", "--trainer.check_val_every_n_epoch=null"),
        (3, 4, 5, 8, 12),
    ),
    "limit as int": (("--trainer.limit_train_batches=4",), (1, 3, 4, 5, 11)),
    "limit as float": (("--trainer.limit_train_batches=0.5",), (1, 2, 3, 4, 8)),
    "estimated steps": (("--model=tests.support.models.Estimating",), (1, 7, 9, 20)),
    "the rest skipped": (("--model.skip_after=5",), (1, 4, 5, 6, 14)),
    "accumulated and skipped": (("--model.skip_after=5", "--trainer.accumulate_grad_batches=2"), (1, 2, 3, 5)),
    "drop last": (("--data.drop_last=true",), (1, 6, 7, 17)),
    "max steps": (("--trainer.max_epochs=-1", "--trainer.max_steps=17"), (1, 6, 7, 8, 16)),
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
