"""A run directory that an earlier release left is resumed, verified and evaluated.

`tests/golden/run` was written at commit 5eb4b7a by two ranks of digits.yaml, stopped at step 50 in the middle of epoch
2; `step-80-weights.pt` is what that release trained by step 80 without stopping.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.run.run_dir import RECEIPT, RunDir
from tests.support.commands import ROOT, Ended, torchrun
from tests.support.resumes import state
from tests.support.runs import verified

App = Callable[..., Ended]
GOLDEN = ROOT / "tests/golden"


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A copy of the golden run."""
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    return str(tmp_path / "run")


def test_it_is_verified(app: App, run: str) -> None:
    ended = app("verify", "--run_dir", run)
    assert ended.status == 0, ended.text
    assert "every sample is accounted for" in ended.out
    assert [row[1:3] for row in verified(ended)] == [["1258", "1258"], ["1258", "1258"], ["640", "640"]]


def test_it_is_evaluated_with_the_same_scores(app: App, run: str) -> None:
    before = json.loads(Path(run, RECEIPT).read_text())
    ended = app("test", "--run_dir", run)
    assert ended.status == 0, ended.text
    after = json.loads(Path(run, RECEIPT).read_text())
    same = ("checkpoint_sha256", "dataset", "dataset_fingerprint", "samples_expected", "samples_scored", "missing")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert after["metrics"]["test_loss"] == pytest.approx(before["metrics"]["test_loss"], rel=1e-5)


def test_what_it_would_resume_from_is_explained(app: App, run: str) -> None:
    ended = app("explain_resume", "--run_dir", run)
    assert ended.status == 0, ended.text
    assert "step 50" in ended.out
    assert "epoch 2, 640 of its samples are used" in ended.out


@pytest.mark.timeout(90)
def test_it_resumes_in_the_middle_of_its_epoch_to_the_weights_of_the_release_that_wrote_it(run: str) -> None:
    fit = ("-m", "pipeline", "fit", "--config", f"{run}/fit.yaml", "--run_dir", run, "--trainer.max_steps=80")
    ended = torchrun(2, *fit)
    assert ended.status == 0, ended.text
    assert "step 50" in ended.err
    assert max(RunDir(run).steps()["json"]) == 80
    expected = torch.load(GOLDEN / "step-80-weights.pt", weights_only=True)
    found = state(run)["state_dict"]
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        # Another processor may round otherwise.
        torch.testing.assert_close(found[name], weights, rtol=1e-4, atol=1e-5)
