"""A finder searches where a run begins; a resume takes what it has found, and what was committed stays as it is."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended
from tests.support.resumes import equal, state
from tests.support.runs import fit, listing, verified

App = Callable[..., Ended]
RATE = ("--trainer.callbacks+=LearningRateFinder", "--trainer.callbacks.num_training_steps=20")
SIZE = (
    *("--trainer.callbacks+=BatchSizeFinder", "--trainer.callbacks.max_trials=2", "--trainer.callbacks.init_val=4"),
)


def checkpoints(run: Path) -> dict[str, object]:
    return {name: value for name, value in listing(str(run)).items() if "/checkpoints/" in name}


@pytest.mark.parametrize("finder", [RATE, SIZE], ids=["learning rate", "batch size"])
def test_a_run_with_a_finder_is_extended_without_searching_again(
    app: App, tmp_path: Path, finder: tuple[str, ...]
) -> None:
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert fit(app, str(straight), 3, *finder).status == 0
    assert fit(app, str(run), 2, *finder).status == 0
    before = checkpoints(run)
    ended = fit(app, str(run), 3, *finder)
    assert ended.status == 0, ended.err
    assert "does not search again: training resumes" in ended.err
    assert before.items() <= checkpoints(run).items(), "what was committed is not written again"
    left, right = state(str(straight)), state(str(run))
    for part in ("global_step", "state_dict", "optimizer_states", "hyper_parameters", "lr_schedulers"):
        assert equal(left[part], right[part]), part
    assert left["pipeline"]["found"] == right["pipeline"]["found"] != {}
    rows = verified(app("verify", "--run_dir", run))
    assert [row[0] for row in rows if len(row) == 7] == ["0", "1", "2"]


def test_a_run_with_a_finder_resumes_in_the_middle_of_an_epoch(app: App, tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert fit(app, str(straight), 2, *RATE).status == 0
    assert fit(app, str(run), -1, "--trainer.max_steps=9", *RATE).status == 0
    assert fit(app, str(run), 2, *RATE).status == 0
    assert equal(state(str(straight))["state_dict"], state(str(run))["state_dict"])
    assert sorted(RunDir(str(run)).steps()["json"]) == [7, 9, 14]
