"""Loaders of the user's own say at the start what a resume does with them, and do that, wherever they come from."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.commands import Ended, torchrun
from tests.support.resumes import only, same_end

App = Callable[..., Ended]
FIT = (
    *("fit", "--trainer.enable_model_summary=false", "--trainer.logger=false", "--checkpoints.every_n_steps=1"),
    "--trainer.max_epochs=2",
)
MODEL = (*FIT, "--model=tests.support.loaders.BringsItsLoader")


def order(app: App, *more: object, out: Path) -> tuple[list[float], str]:
    """The sums of the batches that a fit has trained on, and what it has said."""
    ended = app(*more, "--model.out", out)
    assert ended.status == 0, ended.err
    return [x for _, x in torch.load(f"{out}-0.pt").values()], ended.err


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("shuffled", "skips the batches that were used"),
        ("stream", "reads the batches that were used once more, and skips them"),
        ("own state", "restores its own state"),
    ],
)
def test_the_log_says_what_a_resume_does_and_does_it(app: App, tmp_path: Path, kind: str, how: str) -> None:
    more = (*MODEL, f"--model.kind={kind}")
    straight, err = order(app, *more, "--run_dir", tmp_path / "straight", out=tmp_path / "s")
    assert err.count(f"its samples are not accounted for; a resume in the middle of an epoch {how}") == 1
    only(tmp_path / "straight", tmp_path / "run", 10)
    rest, err = order(app, *more, "--run_dir", tmp_path / "run", out=tmp_path / "r")
    assert rest == straight[10:]
    skipped = "skipping the 3 batches of DataLoader of "
    assert err.count(f"{skipped}{'Rows' if kind == 'shuffled' else 'Stream'} that epoch 1 has used") == (
        0 if kind == "own state" else 1
    ), err


def test_other_batches_begin_at_the_same_sample(app: App, tmp_path: Path) -> None:
    more = (*MODEL, "--model.kind=in order")
    assert app(*more, "--run_dir", tmp_path / "run", "--trainer.max_steps=4").status == 0
    smaller, _ = order(app, *more, "--model.batch_size=8", "--run_dir", tmp_path / "new", out=tmp_path / "s")
    rest, err = order(app, *more, "--model.batch_size=8", "--run_dir", tmp_path / "run", out=tmp_path / "r")
    assert "skipping the 8 batches of DataLoader of Rows" in err
    assert rest == smaller[8:]


def test_a_data_module_that_positions_its_loader_itself_is_left_alone(app: App, tmp_path: Path) -> None:
    more = (*FIT, "--model=tests.support.loaders.Trains", "--data=tests.support.loaders.Positions")
    more = (*more, "--trainer.max_epochs=1")
    straight, err = order(app, *more, "--run_dir", tmp_path / "straight", out=tmp_path / "s")
    assert "begins where the data module's load_state_dict has put it" in err
    only(tmp_path / "straight", tmp_path / "run", 3)
    rest, err = order(app, *more, "--run_dir", tmp_path / "run", out=tmp_path / "r")
    assert "skipping" not in err
    assert rest == straight[3:]


def test_a_loader_that_does_not_take_its_state_back_is_the_users_to_know(app: App, tmp_path: Path) -> None:
    more = (*MODEL, "--model.kind=torchdata shuffled", "--run_dir", tmp_path)
    assert app(*more, "--model.num_workers=2", "--trainer.max_steps=3").status == 0
    ended = app(*more, "--model.num_workers=0")
    assert ended.status == 2
    assert "StatefulDataLoader of Rows does not take back its state in the checkpoint" in ended.err


@pytest.mark.parametrize("step", [4, 6, 9])
@pytest.mark.parametrize(
    ("sampler", "how", "more"),
    [
        ("MegatronSampler", "epoch", ()),
        ("MegatronSampler", "all", ()),
        ("MegatronSampler", "none", ()),
        ("MegatronRandomSampler", "all", ()),
        ("NeMoSampler", "epoch", ()),
        ("NeMoSampler", "all", ("--trainer.limit_train_batches=5",)),
        ("NeMoSampler", "epoch", ("--trainer.limit_train_batches=0.8",)),
        pytest.param("NeMoSampler", "epoch", ("--model.num_workers=2",), marks=pytest.mark.slow),
        pytest.param("MegatronRandomSampler", "all", ("--model.num_workers=2",), marks=pytest.mark.slow),
    ],
)
def test_a_sampler_that_is_built_to_begin_where_training_stands_is_not_moved_twice(
    app: App, tmp_path: Path, sampler: str, how: str, more: tuple[str, ...], step: int
) -> None:
    flags = (*FIT, "--model=tests.support.loaders.TrainsAsMegatron", f"--model.sampler={sampler}", f"--model.how={how}")
    flags = (*flags, *more, "--trainer.max_epochs=3")
    straight, _ = order(app, *flags, "--run_dir", tmp_path / "straight", out=tmp_path / "s")
    assert len(straight) == {"5": 15, "0.8": 12}.get(more[0].partition("=")[2] if more else "", 18)
    only(tmp_path / "straight", tmp_path / "run", step)
    rest, _ = order(app, *flags, "--run_dir", tmp_path / "run", out=tmp_path / "r")
    assert rest == straight[step:]
    same_end(tmp_path / "straight", tmp_path / "run")


def test_a_loader_that_leaves_out_by_itself_what_was_used_is_refused(app: App, tmp_path: Path) -> None:
    flags = (*FIT, "--model=tests.support.loaders.SkipsByItself")
    straight, _ = order(app, *flags, "--run_dir", tmp_path / "straight", out=tmp_path / "s")
    only(tmp_path / "straight", tmp_path / "middle", 4)
    ended = app(*flags, "--run_dir", tmp_path / "middle")
    assert ended.status == 2
    assert "DataLoader of Rows has 3 batches of 7: it leaves out the 4 that were used" in ended.err
    assert "Build it for the whole epoch" in ended.err
    only(tmp_path / "straight", tmp_path / "between", 7)
    rest, _ = order(app, *flags, "--run_dir", tmp_path / "between", out=tmp_path / "r")
    assert rest == straight[7:]


@pytest.mark.timeout(240)
def test_each_of_two_ranks_resumes_its_own_place_and_another_world_is_told(app: App, tmp_path: Path) -> None:
    plan: list[list[str]] = []
    for kind in ("shuffled", "torchdata shuffled"):
        name = f"{tmp_path}/{kind}"
        more = [*MODEL, f"--model.kind={kind}"]
        plan += [
            [*more, "--run_dir", f"{name}-straight", "--model.out", f"{name}-s"],
            ["only", f"{name}-straight", f"{name}-run", "6"],  # 51 samples a rank make 4 batches
            [*more, "--run_dir", f"{name}-run", "--model.out", f"{name}-r"],
        ]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    ended = torchrun(2, "-m", "tests.support.rank_runner", tmp_path / "plan.json", timeout=200)
    assert ended.status == 0, ended.text
    for kind in ("shuffled", "torchdata shuffled"):
        for rank in range(2):
            straight, rest = (torch.load(tmp_path / f"{kind}-{name}-{rank}.pt") for name in ("s", "r"))
            assert len(straight) == 8
            assert rest == {batch: straight[batch] for batch in (6, 7)}, (kind, rank)
    only(tmp_path / "shuffled-straight", tmp_path / "smaller", 6)
    ended = app(*MODEL, "--model.kind=shuffled", "--run_dir", tmp_path / "smaller")
    assert ended.status == 0, ended.err
    assert "restarting epoch 1 from its beginning: the place of DataLoader of Rows is one of batches of 16" in ended.err
