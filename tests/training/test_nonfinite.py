"""A loss that is not finite: `--on_nan stop` ends training before it does harm, `skip` leaves its step out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.run.run_dir import RunDir
from pipeline.training.nonfinite import BadLoss, _are_finite
from tests.support.commands import Ended, assert_one_message, torchrun
from tests.support.runs import App, attempt

BAD = 17
FIT = (
    *("fit", "--data=pipeline.data.DataModule", "--data.batch_size=4", "--checkpoints.every_n_steps=1"),
    *("--trainer.enable_model_summary=false", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"),
)


def poisoned(*bad: int) -> list[str]:
    return [
        "--data.train=tests.support.poisoned.PoisonedRows",
        f"--data.train.init_args.bad=[{','.join(map(str, bad))}]",
    ]


def line(folder: Path, name: str, *more: str, model: str = "LeavesOut", bad: tuple[int, ...] = (BAD,)) -> list[str]:
    """A command line of a run by name, which writes its final state beside it."""
    given = ["--model", f"tests.support.poisoned.{model}", f"--model.out={folder / name}"]
    return [*FIT, *poisoned(*bad), *given, f"--run_dir={folder / name}", *more]


def final(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / f"{name}-{rank}.pt")
    return state


def assert_equal(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def assert_one_error(ended: Ended, words: str) -> None:
    errors = [each for each in ended.err.splitlines() if each.startswith("error")]
    assert (ended.status, len(errors)) == (2, 1), ended.err
    assert words in errors[0]
    assert "Traceback" not in ended.err


def skipped(url: Path, number: int = 1) -> list[int]:
    return [each["step"] for each in attempt(str(url), number)["skipped_steps"]["first"]]


@pytest.mark.parametrize("more", [[], ["--trainer.accumulate_grad_batches=2"], ["--trainer.gradient_clip_val=0.1"]])
def test_a_step_is_left_out_as_if_its_batch_had_not_been_there(more: list[str], app: App, tmp_path: Path) -> None:
    ended = app(*line(tmp_path, "skip", "--on_nan=skip", *more))
    assert ended.status == 0, ended.err
    steps = skipped(tmp_path / "skip")
    assert len(steps) == 2, "once an epoch"
    ended = app(*line(tmp_path, "straight", f"--model.steps={steps}", *more, bad=()))
    assert ended.status == 0, ended.err
    skip, straight = final(tmp_path, "skip"), final(tmp_path, "straight")
    if "accumulate" in str(more):  # the first batch of such a step went through BatchNorm there
        for each in (skip, straight):
            each["model"] = {name: value for name, value in each["model"].items() if "norm." not in name}
    assert_equal(skip, straight)


def test_its_rank_and_samples_are_named_and_recorded_and_the_ledger_counts_them(app: App, tmp_path: Path) -> None:
    ended = app(*line(tmp_path, "run", "--on_nan=skip"))
    record = attempt(str(tmp_path / "run"), 1)["skipped_steps"]
    (loss,) = record["first"][0]["losses"]
    assert record["count"] == 2
    assert (loss["rank"], loss["loss"], loss["more"], len(loss["samples"])) == (0, "nan", 0, 4)
    assert BAD in loss["samples"]
    step = record["first"][0]["step"]
    assert f"step {step} is left out, 1 so far: the loss of rank 0 is nan (batch {step - 1} of epoch 0" in ended.err
    assert "training continues" not in ended.err, "it is said once"
    assert app("verify", "--run_dir", tmp_path / "run").status == 0


def test_manual_optimization_leaves_the_same_steps_out(app: App, tmp_path: Path) -> None:
    assert app(*line(tmp_path, "auto", "--on_nan=skip")).status == 0
    ended = app(*line(tmp_path, "hand", "--on_nan=skip", model="ByHand"))
    assert ended.status == 0, ended.err
    assert skipped(tmp_path / "hand") == skipped(tmp_path / "auto")
    assert_equal(final(tmp_path, "hand")["model"], final(tmp_path, "auto")["model"])


def test_finite_steps_are_the_same_bit_for_bit_whatever_is_asked(app: App, tmp_path: Path) -> None:
    for mode in ("continue", "stop", "skip"):
        ended = app(*line(tmp_path, mode, f"--on_nan={mode}", bad=()))
        assert ended.status == 0, ended.err
        assert "skipped_steps" not in attempt(str(tmp_path / mode), 1)
        assert_equal(final(tmp_path, mode), final(tmp_path, "continue"))


def test_a_run_that_is_killed_and_resumed_leaves_the_same_steps_out(app: App, tmp_path: Path) -> None:
    assert app(*line(tmp_path, "straight", "--on_nan=skip")).status == 0
    first, second = skipped(tmp_path / "straight")
    with pytest.raises(RuntimeError, match="killed"):
        app(*line(tmp_path, "killed", "--on_nan=skip", f"--model.die_at={first + 2}"))
    assert app(*line(tmp_path, "killed", "--on_nan=skip")).status == 0
    assert (skipped(tmp_path / "killed"), skipped(tmp_path / "killed", 2)) == ([first], [second])
    assert_equal(final(tmp_path, "killed"), final(tmp_path, "straight"))


def test_stop_ends_before_the_step_and_keeps_every_checkpoint_before_it(app: App, tmp_path: Path) -> None:
    assert app(*line(tmp_path, "skip", "--on_nan=skip")).status == 0
    step = skipped(tmp_path / "skip")[0]
    ended = app(*line(tmp_path, "stop", "--on_nan=stop"))
    assert_one_error(ended, f"step {step}: the loss of rank 0 is nan (batch {step - 1} of epoch 0, samples ")
    run = RunDir(str(tmp_path / "stop"))
    assert max(run.steps()["json"], default=0) == step - 1
    assert attempt(str(tmp_path / "stop"), 1)["status"] == 2
    newest = torch.load(tmp_path / "stop" / "checkpoints" / f"step-{step - 1:08}.ckpt")["state_dict"]
    assert all(torch.isfinite(value).all() for value in newest.values())
    ended = app(*line(tmp_path, "stop", "--on_nan=skip"))
    assert ended.status == 0, "and the same run goes on without the step"
    assert_equal(final(tmp_path, "stop"), final(tmp_path, "skip"))


def test_gradients_that_are_not_finite_stop_training_though_the_loss_is(app: App, tmp_path: Path) -> None:
    given = ("--data.train=tests.support.models.Rows", "--model=tests.support.poisoned.SteepAtZero")
    ended = app(*FIT, *given, "--on_nan=stop", "--run_dir", tmp_path)
    assert_one_error(ended, "step 3: gradients are not finite, though the loss of each rank is.")


def test_a_training_of_which_nothing_is_left_ends(app: App, tmp_path: Path) -> None:
    ended = app(*line(tmp_path, "run", "--on_nan=skip", "--trainer.max_epochs=20", bad=tuple(range(48))))
    assert ended.status == 2
    assert "step 100: 100 steps in a row were left out (on_nan=skip)" in ended.err
    assert len([each for each in ended.err.splitlines() if "is left out" in each]) == 11, "it does not flood the log"


def test_lbfgs_cannot_leave_a_step_out(app: App, tmp_path: Path) -> None:
    given = ("--data.train=tests.support.models.Rows", "--model=tests.support.poisoned.ByLBFGS")
    ended = app(*FIT, *given, "--on_nan=skip", "--run_dir", tmp_path)
    assert_one_error(ended, "on_nan='skip': LBFGS moves the weights")


def test_on_nan_is_a_flag_of_fit_that_its_yaml_keeps(app: App, tmp_path: Path) -> None:
    assert app(*line(tmp_path, "run", "--on_nan=skip", "--trainer.max_steps=1")).status == 0
    assert "on_nan: skip" in (tmp_path / "run/fit.yaml").read_text()
    assert_one_message(app(*FIT, *poisoned(), "--model=tests.support.models.Regression", "--on_nan=maybe"), "on_nan")
    assert_one_message(app("validate", "--run_dir", tmp_path / "run", "--on_nan=stop"), "on_nan is a flag of fit alone")


def test_a_long_batch_is_named_in_short() -> None:
    text = str(BadLoss(3, "inf", 0, 7, list(range(20)), 44))
    assert text.startswith("the loss of rank 3 is inf (batch 7 of epoch 0, samples 0, 1, 2, ")
    assert text.endswith(", 19 and 44 more)")
    assert str(BadLoss(0, "nan", 1, 2, None)) == "the loss of rank 0 is nan (batch 2 of epoch 1)"


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_gradients_that_are_large_are_finite_and_one_number_that_is_not_is_found(wrong: float) -> None:
    large: list[Tensor] = [torch.full((3,), 1e30), torch.zeros(0), torch.ones(2, dtype=torch.float64)]
    assert _are_finite(large), "though the sum of their squares is not"
    assert not _are_finite([*large, torch.tensor([0.0, wrong])])
    assert not _are_finite([torch.sparse_coo_tensor(torch.tensor([[1]]), torch.tensor([wrong]), (4,))])
    assert _are_finite([])


def ranks(folder: Path, name: str, lines: list[list[str]]) -> Ended:
    plan = folder / f"{name}.json"
    plan.write_text(json.dumps(lines))
    return torchrun(2, "-m", "tests.support.rank_runner", plan, timeout=120)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_two_ranks_leave_out_the_step_that_is_not_a_number_on_one_of_them(tmp_path: Path) -> None:
    lines = [line(tmp_path, "skip", "--on_nan=skip"), line(tmp_path, "stop", "--on_nan=stop")]
    ended = ranks(tmp_path, "one", lines)
    assert [json.loads(Path(f"{tmp_path}/one.json.{rank}").read_text()) for rank in range(2)] == [[0, 2]] * 2, (
        ended.text
    )
    steps = skipped(tmp_path / "skip")
    losses = [each["losses"] for each in attempt(str(tmp_path / "skip"), 1)["skipped_steps"]["first"]]
    assert len(steps) == 2
    assert all(len(each) == 1 and BAD in each[0]["samples"] for each in losses), "only one rank's loss was none"
    assert {each[0]["rank"] for each in losses} <= {0, 1}
    assert f"step {steps[0]}: the loss of rank {losses[0][0]['rank']} is nan" in ended.err
    assert max(RunDir(str(tmp_path / "stop")).steps()["json"], default=0) == steps[0] - 1
    ended = ranks(tmp_path, "two", [line(tmp_path, "straight", f"--model.steps={steps}", bad=())])
    assert ended.status == 0, ended.text
    for rank in range(2):
        assert_equal(final(tmp_path, "skip", rank), final(tmp_path, "straight", rank))
