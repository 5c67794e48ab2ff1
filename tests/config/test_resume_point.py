"""A subcommand loads the newest good checkpoint of its run, and no fit starts over what another one committed."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint.commit import newest, write_record
from pipeline.checkpoint.foreign import digest
from pipeline.config import saved_config
from pipeline.config.resume_point import ResumePoint, for_evaluation, for_training, require_not_removed
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir
from tests.support.checkpoints import commit

TRAINER: dict[str, Any] = {"accelerator": "auto", "precision": None}
ASKED: dict[str, Any] = {
    "model": {"class_path": "a.Model", "init_args": {"width": 1}},
    "trainer": TRAINER,
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


def test_a_fit_is_finished_where_what_is_asked_for_is_done(run: RunDir) -> None:
    """The newest step is 2, of epoch 1."""
    assert not for_training(run, ASKED, None).finished
    assert for_training(run, {**ASKED, "trainer": {**TRAINER, "max_epochs": 1}}, None).finished
    assert not for_training(run, {**ASKED, "trainer": {**TRAINER, "max_epochs": 2}}, None).finished
    assert for_training(run, {**ASKED, "trainer": {**TRAINER, "max_epochs": 2, "max_steps": 2}}, None).finished


def test_what_an_earlier_version_has_ended_is_finished_while_its_last_attempt_says_so(run: RunDir) -> None:
    record = newest(run)
    assert record is not None
    write_record(run, replace(record, reason=["end"]), overwrite=True)
    done = {"attempt": 1, "first_step": 0, "last_step": 2, "reason": "done"}
    run.write_json(RunDir.attempt(1), done)
    assert for_training(run, ASKED, None).finished
    assert not for_training(run, {**ASKED, "trainer": {**TRAINER, "log_every_n_steps": 1}}, None).finished
    run.write_json(RunDir.attempt(2), {**done, "attempt": 2, "first_step": 2, "reason": None})
    assert not for_training(run, ASKED, None).finished, "that one was extended, and killed before its first commit"


def remove_records(run: RunDir, *steps: int) -> None:
    for step in steps:
        run.remove(RunDir.record(step))


def test_where_all_records_are_gone_nothing_is_started_from_scratch(run: RunDir) -> None:
    run.write_json(RunDir.attempt(1), {"attempt": 1, "first_step": 0, "last_step": 2, "committed_step": 2})
    remove_records(run, 1, 2)
    with pytest.raises(UserError, match=r"attempts/0001.json says that step 2 is committed, but there is no commit"):
        for_training(run, ASKED, None)
    for step in (1, 2):
        Path(run.path, RunDir.record(step)).mkdir()
    with pytest.raises(UserError, match="nothing deleted"):
        for_training(run, ASKED, "other.ckpt")


def test_a_configuration_that_was_written_with_a_commit_says_that_there_was_one(run: RunDir) -> None:
    remove_records(run, 1, 2)
    with pytest.raises(UserError, match=r"fit.yaml is there, which is written with the first commit"):
        for_training(run, ASKED, None)
    run.write(RunDir.config("fit"), saved_config.dump({**ASKED, "trainer": {**TRAINER, "enable_checkpointing": False}}))
    assert for_training(run, ASKED, None) == ResumePoint()


def test_an_earlier_version_wrote_the_configuration_before_its_first_commit(run: RunDir) -> None:
    run.write_json(RunDir.attempt(1), {"attempt": 1, "first_step": 0, "last_step": None})
    remove_records(run, 1, 2)
    assert for_training(run, ASKED, None) == ResumePoint()


def test_newer_commits_that_have_lost_their_records_are_named(
    run: RunDir, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    run.write_json(RunDir.attempt(1), {"attempt": 1, "first_step": 0, "last_step": 2})
    assert for_training(run, ASKED, None).step == 2
    assert caplog.text == ""
    remove_records(run, 2)
    assert for_training(run, ASKED, None).step == 1
    assert "attempts/0001.json says that step 2 is committed, but its commit record is gone" in caplog.text
    assert "resuming at step 1, 1 steps are trained again" in caplog.text


def test_a_run_that_this_job_has_started_before_must_still_be_there(run: RunDir) -> None:
    require_not_removed(run)
    with pytest.raises(UserError, match="was removed, moved or unmounted"):
        require_not_removed(RunDir(f"{run.url}-other"))


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
