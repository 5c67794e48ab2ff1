"""A subcommand loads the newest good checkpoint of its run, and no fit starts over what another one committed."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint.commit import newest, write_record
from pipeline.config import saved_config
from pipeline.config.resume_point import ResumePoint, digest, for_evaluation, for_training
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir
from tests.support.checkpoints import commit

ASKED: dict[str, Any] = {
    "model": {"class_path": "a.Model", "init_args": {"width": 1}},
    "trainer": {},
    "ckpt_path": None,
}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Two committed steps of a model of width 1."""
    run = RunDir(str(tmp_path / "run"))
    for step in (1, 2):
        commit(run, step)
    run.write(RunDir.config("fit"), saved_config.dump(ASKED))
    return run


def test_a_fit_resumes_from_the_newest_step_and_a_new_one_from_what_is_given(run: RunDir, tmp_path: Path) -> None:
    found = for_training(run, ASKED, None)
    assert (found.step, found.own is not None, found.url) == (2, True, run.url_of(RunDir.checkpoint(2)))
    assert for_training(RunDir(str(tmp_path / "new")), ASKED, None) == ResumePoint()
    assert for_training(RunDir(str(tmp_path / "new")), ASKED, "x.ckpt") == ResumePoint(url="x.ckpt")


def test_a_fit_is_finished_where_the_same_configuration_came_to_its_end(run: RunDir) -> None:
    record = newest(run)
    assert record is not None
    write_record(run, replace(record, reason=["end"]), overwrite=True)
    assert for_training(run, ASKED, None).finished
    assert not for_training(run, {**ASKED, "trainer": {"max_epochs": 3}}, None).finished


def test_another_checkpoint_or_model_is_refused(run: RunDir) -> None:
    with pytest.raises(UserError, match=r"ckpt_path='other.ckpt': .* is at step 2 already"):
        for_training(run, ASKED, "other.ckpt")
    with pytest.raises(UserError, match=r"was trained with 'a.Model'"):
        for_training(run, {**ASKED, "model": {"class_path": "b.Model"}}, None)
    wider = {**ASKED, "model": {"class_path": "a.Model", "init_args": {"width": 2}}}
    assert for_training(run, wider, None).step == 2, "the weights say whether it fits"
    with pytest.raises(UserError, match=r"model.width=2"):
        for_evaluation(run, wider, None)
    assert for_evaluation(run, ASKED, "1").step == 1


def test_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"weights")
    assert digest(str(tmp_path / "x.ckpt")) == f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    with pytest.raises(UserError, match="cannot be read"):
        digest(str(tmp_path / "none.ckpt"))
