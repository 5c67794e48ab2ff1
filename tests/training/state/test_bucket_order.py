"""Real gloo ranks: an interrupted run equals the straight one, and a resized one sees the same samples."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from pipeline.run.run_dir import RunDir
from pipeline.training.state.bucket_order import BucketOrder
from tests.support.commands import Ended, torchrun
from tests.support.resumes import CASES, GRID, same_end
from tests.support.runs import logged, verified

App = Callable[..., Ended]

THOROUGH = (
    *(
        "fit",
        "--model=tests.support.models.Thorough",
        "--data=pipeline.data.DataModule",
        "--data.train=tests.support.models.Noisy",
    ),
    *("--data.val=tests.support.models.Rows", "--data.batch_size=8", "--trainer.enable_model_summary=false"),
    *("--trainer.max_epochs=3", "--trainer.log_every_n_steps=1", "--checkpoints.every_n_steps=1"),
)


def carry_out(ranks: int, plan: Path, lines: list[list[str]], timeout: float = 110) -> None:
    plan.write_text(json.dumps(lines))
    ended = torchrun(ranks, "-m", "tests.support.rank_runner", plan, timeout=timeout)
    assert ended.status == 0, ended.text
    for rank in range(ranks):
        assert set(json.loads(Path(f"{plan}.{rank}").read_text())) == {0}, ended.text


# The first step of each case is resumed from by `make test`, and the first 3 of the plain one.
# 101 samples on 2 ranks with a batch of 8: 7 steps an epoch, the last one with 3 samples a rank, one of them padded.
TWO = {
    "plain": (1, 7, 13, 6),
    "two workers": (9,),
    "accumulation": (3, 5),
    "validation within an epoch": (4, 10),
    "limit as float": (4,),
    "estimated steps": (9,),
    "the rest skipped": (6,),
    "drop last": (8,),
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("every", GRID)
def test_on_two_ranks_a_run_resumed_after_any_step_equals_the_straight_one(tmp_path: Path, every: bool) -> None:
    lines, pairs = [], []
    for case, steps in TWO.items() if every else list(TWO.items())[:4]:
        more, _ = CASES[case]
        straight = tmp_path / case.replace(" ", "-")
        lines.append([*THOROUGH, *more, "--run_dir", str(straight)])
        for step in steps[: None if every else 2 if case == "plain" else 1]:
            resumed = Path(f"{straight}-{step}")
            lines.append(["only", str(straight), str(resumed), str(step)])
            lines.append([*THOROUGH, *more, "--run_dir", str(resumed)])
            pairs.append((straight, resumed, step))
    carry_out(2, tmp_path / "plan.json", lines, timeout=170)
    assert len(pairs) == (13 if every else 5)
    for straight, resumed, step in pairs:
        same_end(straight, resumed)
        for name in ("train_loss_step", "val_loss"):
            expected = {at: value for at, value in logged(str(straight), name).items() if at >= step}
            assert logged(str(resumed), name) == expected, (resumed.name, name)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("ranks", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_on_three_and_four_ranks_too_though_ddp_rebuilds_its_buckets(tmp_path: Path, ranks: int) -> None:
    straight = tmp_path / "straight"
    lines = [[*THOROUGH, "--run_dir", str(straight)]]
    for step in (2, 5):
        resumed = str(tmp_path / f"from-{step}")
        lines += [["only", str(straight), resumed, str(step)], [*THOROUGH, "--run_dir", resumed]]
    carry_out(ranks, tmp_path / "plan.json", lines)
    for step in (2, 5):
        same_end(straight, tmp_path / f"from-{step}")


@pytest.mark.timeout(120)
def test_a_run_that_was_killed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    workers = ("--data.num_workers=1", "--checkpoints.every_n_steps=3")
    ended = torchrun(2, "-m", "pipeline", *THOROUGH, *workers, "--model.die_at=11", "--run_dir", killed)
    assert ended.status != 0
    assert sorted(RunDir(str(killed)).steps()["json"]) == [3, 6, 7, 9]
    lines = [[*THOROUGH, *workers, "--run_dir", str(run)] for run in (killed, straight)]
    carry_out(2, tmp_path / "plan.json", lines)
    same_end(straight, killed)


NOTING = (
    *("-m", "pipeline", "fit", "--model=tests.support.killable.Noting", "--data=pipeline.data.DataModule"),
    *(
        "--data.train=tests.support.models.Indexed",
        "--data.val=tests.support.models.Indexed",
        "--trainer.enable_model_summary=false",
    ),
)


def steps_of(notes: Path, ranks: int) -> dict[tuple[int, int], list[int]]:
    """The sorted indices of all ranks by (epoch, step)."""
    found: dict[tuple[int, int], list[int]] = {}
    for rank in range(ranks):
        for line in Path(f"{notes}-{rank}.jsonl").read_text().splitlines():
            note = json.loads(line)
            found.setdefault((note["epoch"], note["step"]), []).extend(note["indices"])
    return {key: sorted(indices) for key, indices in found.items()}


def start(app: App, ranks: int, *arguments: object) -> Ended:
    """One rank needs no launcher, and no import of its own."""
    return app(*arguments[2:]) if ranks == 1 else torchrun(ranks, *arguments)


@pytest.mark.timeout(180)
def test_killed_and_resized_from_2_to_1_to_3_ranks_the_global_batches_are_the_same(app: App, tmp_path: Path) -> None:
    run = tmp_path / "run"
    found: dict[tuple[int, int], list[int]] = {}
    parts: list[tuple[int, list[str]]] = [
        (2, ["--model.die_at=5", "--trainer.max_steps=17"]),
        (1, ["--trainer.max_steps=13"]),
        (3, ["--trainer.max_steps=17"]),
    ]
    for number, (ranks, more) in enumerate(parts):
        notes = tmp_path / f"notes-{number}"
        arguments = (
            *(*NOTING, "--data.global_batch_size=12", "--checkpoints.every_n_steps=2", "--trainer.max_epochs=-1"),
            *("--run_dir", run, f"--model.notes={notes}", *more),
        )
        ended = start(app, ranks, *arguments)
        assert (ended.status != 0) == (number == 0), ended.text
        found |= steps_of(notes, ranks)
        if number:
            assert f"resumed at step {(4, 13)[number - 1]} from" in ended.err
            assert "mismatches with the resumed checkpoint: world_size" in ended.err
    # 101 = 8 x 12 + 5: nine steps an epoch, whose last one may hold a few samples twice.
    assert len(found) == 17
    straight = tmp_path / "straight"
    reference = (*NOTING, "--data.global_batch_size=12", "--trainer.max_epochs=-1", "--trainer.max_steps=17")
    arguments = (*reference, "--run_dir", straight, f"--model.notes={tmp_path / 'reference'}")
    assert start(app, 1, *arguments).status == 0
    expected = steps_of(tmp_path / "reference", 1)
    assert {key: set(indices) for key, indices in found.items()} == {
        key: set(indices) for key, indices in expected.items()
    }
    assert all(len(indices) == 12 for (epoch, step), indices in found.items() if step not in (9, 18))
    ended = app("verify", "--run_dir", run)
    assert ended.status == 0, ended.out
    assert verified(ended)[0] == ["0", "101", "101", "0", "0", "ok", "complete"]


@pytest.mark.timeout(120)
def test_with_a_fixed_batch_size_a_resized_epoch_still_sees_each_sample_once(app: App, tmp_path: Path) -> None:
    run = tmp_path / "run"
    seen: Counter[int] = Counter()
    for number, (ranks, steps) in enumerate(((2, 4), (1, 7), (3, 10))):
        notes = tmp_path / f"notes-{number}"
        arguments = (
            *(*NOTING, "--data.batch_size=5", "--trainer.max_epochs=-1", f"--trainer.max_steps={steps}"),
            *("--data.val=null", "--run_dir", run, f"--model.notes={notes}"),
        )
        ended = start(app, ranks, *arguments)
        assert ended.status == 0, ended.text
        for indices in steps_of(notes, ranks).values():
            seen.update(indices)
    # 4 x 2 x 5 + 3 x 1 x 5 = 55 are used when three ranks come; the remaining 46 need one and a third of 3 x 5 more.
    assert max(seen.values()) == 1
    assert sum(seen.values()) == 100
    assert verified(app("verify", "--run_dir", run)) == [["0", "100", "100", "0", "0", "ok", "max_steps"]]


@pytest.mark.timeout(90)
def test_validation_scores_each_sample_once_on_uneven_ranks_and_the_mean_is_exact(tmp_path: Path) -> None:
    lines = []
    for size, batch in ((13, 2), (101, 8), (3, 4), (7, 3)):
        lines.append(
            [
                *(
                    *NOTING[2:],
                    f"--data.val.init_args.n={size}",
                    f"--data.batch_size={batch}",
                    "--trainer.max_epochs=1",
                ),
                *("--checkpoints.monitor=val_mean", f"--model.notes={tmp_path / 'notes'}"),
                *("--run_dir", str(tmp_path / str(size))),
            ]
        )
    carry_out(3, tmp_path / "plan.json", lines)
    for size in (13, 101, 3, 7):
        steps = sorted(tmp_path.glob(f"{size}/checkpoints/*.json"))
        record: Any = json.loads(steps[-1].read_text())
        expected = torch.arange(size).double().mean().item()
        assert record["monitor"]["value"] == pytest.approx(expected, rel=1e-6), size


@pytest.mark.timeout(60)
def test_a_validation_set_smaller_than_the_world_and_an_indivisible_batch_are_named_together(tmp_path: Path) -> None:
    more = ("--data.val.init_args.n=1", "--data.global_batch_size=7", f"--model.notes={tmp_path / 'n'}")
    ended = torchrun(2, *NOTING, *more, "--run_dir", tmp_path / "run")
    assert ended.err.count("data.val has 1 samples for 2 processes: validation never scores a sample twice") == 1
    assert "data.global_batch_size=7 does not divide by 2 (world size 2 x accumulate_grad_batches 1)" in ended.err
    assert "the nearest that do are 6 and 8" in ended.err
    assert "exitcode  : 2" in ended.err
    assert not RunDir(str(tmp_path / "run")).steps()["json"]


@pytest.mark.parametrize("state", [None, "a state"])
def test_a_communication_hook_with_a_state_is_left_alone_and_named(
    state: Any, caplog: pytest.LogCaptureFixture
) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = DistributedDataParallel(torch.nn.Linear(2, 1))
        called = []

        def sums_up(state, bucket):
            called.append(state)
            future: Any = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        model.register_comm_hook(state, sums_up)
        trainer: Any = SimpleNamespace(strategy=SimpleNamespace(model=model), is_global_zero=True)
        order = BucketOrder()
        with caplog.at_level("WARNING", logger="pipeline"):
            order.begin(trainer, [1, 0])
    finally:
        torch.distributed.destroy_process_group()
    assert bool(called) == (state is None)
    assert ("the state of the DDP communication hook sums_up is in no checkpoint" in caplog.text) == (state is not None)
