"""SIGTERM at any moment: the last step is saved, the status is 75, and the same command ends in the same weights."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended, torchrun
from tests.support.resumes import BASE, PARTS, same_end
from tests.support.runs import logged, slow_saves

App = Callable[..., Ended]

PLAIN = ("--checkpoints.every_n_steps=null", "--checkpoints.monitor=val_loss")
WITHIN = ("--trainer.val_check_interval=3",)
# 7 steps an epoch, 3 epochs. The moment, what is asked for besides, and the step that is saved.
MOMENTS: dict[str, tuple[str, tuple[str, ...], int | None]] = {
    "before the first step": ("setup", (), None),
    "in the sanity check": ("sanity", (), None),
    "after the first step": ("step 1", (), 1),
    "in an epoch": ("step 9", (), 9),
    "in an epoch with loader workers": ("step 9", ("--data.num_workers=2",), 9),
    "after an epoch's last step": ("step 14", (), 14),
    "at an epoch's end": ("end of epoch 0", (), 7),
    "at an epoch's start": ("start of epoch 1", (), 7),
    "in the validation at an epoch's end": ("validation 2", (), 14),
    "in the validation of the last epoch": ("validation 3", (), 21),
    "in a validation within an epoch": ("validation 3", WITHIN, 10),
    "in a validation after an epoch's last but one step": ("validation 2", WITHIN, 6),
    "where an accumulated step is half done": ("batch 2", ("--trainer.accumulate_grad_batches=2",), 2),
    "in a validation where an accumulated step is half done": (
        "validation 1",
        (*WITHIN, "--trainer.accumulate_grad_batches=2"),
        2,
    ),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run of the same arguments that is not asked to end, trained once for all moments."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def trained(app: App, more: tuple[str, ...]) -> Path:
        run = folder / "".join(filter(str.isalnum, "".join(more) or "plain"))
        if not run.exists():
            ended = app(*BASE, *PLAIN, *more, "--run_dir", run)
            assert ended.status == 0, ended.err
        return run

    return trained


@pytest.mark.timeout(60)
@pytest.mark.parametrize("moment", MOMENTS)
def test_asked_to_end_it_saves_the_step_ends_with_75_and_goes_on_bit_for_bit(
    app: App, tmp_path: Path, moment: str, undisturbed: Callable[..., Path]
) -> None:
    at, more, step = MOMENTS[moment]
    asks = (
        "--trainer.callbacks=tests.support.killable.Asks",
        f"--trainer.callbacks.at={at}",
        f"--trainer.callbacks.once={tmp_path / 'once'}",
    )
    straight, run = undisturbed(app, more), tmp_path / "run"
    ended = app(*BASE, *PLAIN, *more, *asks, "--run_dir", run)
    assert ended.status == 75, ended.err
    assert "preempted" in ended.err
    assert "Traceback" not in ended.err
    assert max(RunDir(str(run)).steps()["json"], default=None) == step
    attempt = RunDir(str(run)).read_json(RunDir.attempt(1))
    assert attempt is not None
    assert (attempt["status"], attempt["last_step"]) == (75, step)
    assert "preempted" in attempt["reason"]
    if "in the validation" in attempt["reason"]:
        record = RunDir(str(run)).read_json(RunDir.record(step or 0))
        assert record is not None
        assert record["monitor"] is None, "of this step nothing is known yet"
    ended = app(*BASE, *PLAIN, *more, *asks, "--run_dir", run)
    assert ended.status == 0, ended.err
    assert (f"resumed at step {step} " in ended.err) == (step is not None)
    # A step that was saved within its validation is not written again, though the epoch and its schedules end with it.
    same_end(straight, run, ("global_step", "state_dict") if step == 21 else PARTS)
    last = RunDir(str(run)).read_json(RunDir.record(max(RunDir(str(run)).steps()["json"])))
    assert last is not None
    assert "end" in last["reason"]
    assert "nothing to train" in app(*BASE, *PLAIN, *more, *asks, "--run_dir", run).err
    for name in ("train_loss_step", "train_loss_epoch", "train_mean", "val_loss"):
        expected = {at: value for at, value in logged(str(straight), name).items() if at >= (step or 0)}
        found = {at: value for at, value in logged(str(run), name).items() if at >= (step or 0)}
        assert found == expected, name
    for number in RunDir(str(straight)).steps()["json"]:
        saved, known = (RunDir(str(each)).read_json(RunDir.record(number)) for each in (run, straight))
        assert saved is not None
        assert known is not None
        assert saved["monitor"] == known["monitor"], "also what a validation that was left has found later"


def test_asked_while_a_save_is_under_way_it_waits_for_that_and_saves_the_last_step_too(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_saves(monkeypatch, 0.4)
    asks = ("--trainer.callbacks=tests.support.killable.Asks", "--trainer.callbacks.at=step 5")
    saves = ("--checkpoints.every_n_steps=4", f"--trainer.callbacks.once={tmp_path / 'once'}")
    ended = app(*BASE, *asks, *saves, "--run_dir", tmp_path / "run")
    assert ended.status == 75, ended.err
    assert "checkpoint at step 5 blocked" in ended.err
    assert set(RunDir(str(tmp_path / "run")).steps()["json"]) == {4, 5}


def test_asked_at_the_end_of_training_it_ends_well(app: App, tmp_path: Path) -> None:
    asks = ("--trainer.callbacks=tests.support.killable.Asks", "--trainer.callbacks.at=end")
    ended = app(*BASE, *asks, f"--trainer.callbacks.once={tmp_path / 'once'}", "--run_dir", tmp_path / "run")
    assert (tmp_path / "once").exists()
    assert ended.status == 0, ended.err


@pytest.mark.parametrize(("seconds", "within"), [(0.6, 1), (0.02, 64)])
def test_a_stop_that_is_asked_for_in_a_long_batch_comes_at_its_end_on_all_ranks(seconds: float, within: int) -> None:
    program = (
        "import os, sys, time\n"
        "import torch.distributed as dist\n"
        "from pipeline.process.preemption import Preemption\n"
        "from pipeline.training.stop_vote import StopVote\n"
        "dist.init_process_group('gloo')\n"
        "preemption = Preemption()\n"
        "vote, rank = StopVote(preemption), dist.get_rank()\n"
        "vote.begin(2, None)\n"
        "batch = 0\n"
        "while not vote.poll().stop:\n"
        "    batch += 1\n"
        "    time.sleep(float(sys.argv[2]))\n"
        "    if (batch, rank) == (4, 1):\n"
        "        preemption.ask()\n"
        "print(f'rank {rank} stops after batch {batch}')\n"
    )
    ended = torchrun(2, "-m", "tests.support.statements", program, seconds)
    assert ended.status == 0, ended.text
    stopped = {int(batch) for batch in re.findall(r"stops after batch (\d+)", ended.out)}
    assert len(stopped) == 1, ended.out
    assert 4 <= stopped.pop() < 4 + within
