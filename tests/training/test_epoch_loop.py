"""A run that was interrupted after any step ends like one that never was, bit for bit."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.run.run_dir import RunDir
from tests.support.commands import ROOT, Ended, torchrun
from tests.support.resumes import BASE, CASES, GRID, WEIGHTS, equal, only, same_end, state
from tests.support.runs import logged

App = Callable[..., Ended]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("every", GRID)
@pytest.mark.parametrize("case", CASES)
def test_resumed_after_any_step_equals_straight(app: App, tmp_path: Path, case: str, every: bool) -> None:
    more, steps = CASES[case]
    straight = tmp_path / "straight"
    ended = app(*BASE, *more, "--run_dir", straight, "--model.out", tmp_path / "seen")
    assert ended.status == 0, ended.err
    seen = torch.load(tmp_path / "seen-0.pt")
    for step in steps[: None if every else 3 if case == "plain" else 2]:
        run = tmp_path / f"from-{step}"
        only(straight, run, step)
        ended = app(*BASE, *more, "--run_dir", run, "--model.out", tmp_path / "again")
        assert ended.status == 0, ended.err
        assert f"resumed at step {step} " in ended.err
        again = torch.load(tmp_path / "again-0.pt")
        assert {batch: seen[batch] for batch in again} == again, f"losses and batches after step {step}"
        assert set(again) == set(seen) - set(range(min(again))), f"batches after step {step}"
        same_end(straight, run)
        position = RunDir(str(run)).read_json(RunDir.record(step))["position"]  # type: ignore[index]
        for name in ("train_loss_step", "train_loss_epoch", "train_mean", "train_max", "val_loss"):
            # Lightning counts from 0: what belongs to the n-th step is logged at n - 1. The sums of an epoch whose last
            # batch was the n-th are logged after step n was saved, unless step n was saved after the epoch's end.
            first = step - 1 if name in ("train_loss_epoch", "train_mean", "train_max") and position else step
            expected = {at: value for at, value in logged(str(straight), name).items() if at >= first}
            assert logged(str(run), name) == expected, f"{name} after step {step}"


def test_a_second_and_a_third_resume_and_other_numbers_of_workers_too(app: App, tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "resumed"
    assert app(*BASE, "--run_dir", straight).status == 0
    for stop, workers in ((3, 0), (5, 2), (9, 1), (21, 0)):
        ended = app(
            *BASE,
            "--run_dir",
            run,
            f"--data.num_workers={workers}",
            "--trainer.max_epochs=-1",
            f"--trainer.max_steps={stop}",
        )
        assert ended.status == 0, ended.err
    left, right = state(str(straight)), state(str(run))
    for part in WEIGHTS:
        assert equal(left[part], right[part]), part


def test_an_attempt_that_saves_nothing_goes_on_exactly_too(app: App, tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert app(*BASE, "--run_dir", straight, "--model.out", tmp_path / "seen").status == 0
    only(straight, run, 10)
    more = ("--trainer.enable_checkpointing=false", "--model.out", tmp_path / "again")
    ended = app(*BASE, "--run_dir", run, *more)
    assert ended.status == 0, ended.err
    seen, again = (torch.load(tmp_path / f"{name}-0.pt") for name in ("seen", "again"))
    assert again == {batch: seen[batch] for batch in range(10, 21)}


def test_a_state_of_another_version_is_refused(app: App, tmp_path: Path) -> None:
    assert app(*BASE, "--run_dir", tmp_path, "--trainer.max_epochs=1").status == 0
    name = max(tmp_path.glob("checkpoints/*.ckpt"))
    checkpoint = torch.load(name, weights_only=True)
    checkpoint["pipeline"]["schema"] = 2
    torch.save(checkpoint, name)
    record = json.loads(name.with_suffix(".json").read_text())
    found = {"bytes": name.stat().st_size, "sha256": f"sha256:{hashlib.sha256(name.read_bytes()).hexdigest()}"}
    name.with_suffix(".json").write_text(json.dumps({**record, **found}))
    for command in (BASE, ("verify",), ("explain_resume",)):
        ended = app(*command, "--run_dir", tmp_path)
        assert ended.status == 2, ended.err
        assert "schema 2; this version reads 1" in ended.err


COUNTS = """
import json, sys
from collections import Counter
import torch.distributed as dist
from pipeline.cli import main
from tests.support import models

counts, steps = Counter(), []
for name in ("broadcast", "barrier", "all_gather", "all_gather_object", "broadcast_object_list", "all_reduce"):
    def counting(*arguments, _name=name, _real=getattr(dist, name), **named):
        counts[_name] += 1
        return _real(*arguments, **named)
    setattr(dist, name, counting)

class Counting(models.Regression):
    def on_train_batch_end(self, *_):
        steps.append(dict(counts))

models.Counting = Counting
status = main(sys.argv[2:])
if dist.is_available() and __import__("os").environ["RANK"] == "0":
    json.dump(steps, open(sys.argv[1], "w"))
sys.exit(status)
"""


@pytest.mark.timeout(90)
def test_between_two_batches_nothing_is_sent_but_a_ballot_now_and_then(tmp_path: Path) -> None:
    """Lightning broadcasts before every batch, which costs 12 % of a step; a release may do so under another name."""
    program, notes = tmp_path / "counts.py", tmp_path / "steps.json"
    program.write_text(COUNTS)
    fit = ("fit", "--model=tests.support.models.Counting", "--data=pipeline.data.DataModule")
    data = ("--data.train=tests.support.models.Rows", "--data.batch_size=2", "--trainer.enable_model_summary=false")
    more = ("--trainer.max_epochs=4", "--checkpoints.every_n_epochs=9", "--trainer.logger=false")
    ended = torchrun(
        2, program, notes, *fit, *data, *more, "--run_dir", tmp_path / "run", env={"PYTHONPATH": str(ROOT)}
    )
    assert ended.status == 0, ended.text
    steps = json.loads(notes.read_text())
    per_epoch = 26
    first, last = steps[per_epoch + 1], steps[2 * per_epoch - 1]
    spent = {name: last[name] - first.get(name, 0) for name in last}
    assert {name for name, count in spent.items() if count} <= {"all_reduce"}
    assert spent.get("all_reduce", 0) <= per_epoch // 2, "a ballot is cast about once a second"
