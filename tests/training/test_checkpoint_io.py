"""Checkpoints of others go to any URL and load without executing code; the run's own load as their record says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint.commit import Corrupt, newest
from pipeline.checkpoint.saver import Saver
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir
from pipeline.training.checkpoint_io import RunIO
from tests.support.checkpoints import a_record, tensors


@pytest.fixture
def run(storage: str) -> RunDir:
    """A run with a checkpoint of step 3."""
    made = RunDir(storage)
    saver = Saver(made, 0)
    saver.save(tensors(), a_record(3))
    saver.finish()
    return made


def test_what_another_callback_saves_is_loaded_and_removed_on_every_storage(storage: str) -> None:
    io, url = RunIO(), f"{storage}/theirs/last.ckpt"
    io.save_checkpoint({"weights": torch.ones(3), "number": 3}, url)
    found = io.load_checkpoint(url)
    assert torch.equal(found["weights"], torch.ones(3))
    assert found["number"] == 3
    io.remove_checkpoint(url)
    io.remove_checkpoint(url)
    with pytest.raises(UserError, match="does not exist"):
        io.load_checkpoint(url)


def test_what_would_not_load_again_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"folder is a pathlib"):
        RunIO().save_checkpoint({"folder": tmp_path}, tmp_path / "x.ckpt")
    with pytest.raises(TypeError, match="storage_options are not supported"):
        RunIO().save_checkpoint({}, tmp_path / "x.ckpt", {"key": "secret"})
    assert not (tmp_path / "x.ckpt").exists(), "nothing is written of what is refused"


def test_a_pickle_is_loaded_only_where_the_user_asks_for_it(tmp_path: Path) -> None:
    torch.save({"folder": tmp_path}, tmp_path / "x.ckpt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        RunIO().load_checkpoint(tmp_path / "x.ckpt")
    assert RunIO().load_checkpoint(tmp_path / "x.ckpt", weights_only=False) == {"folder": tmp_path}


def test_a_commit_of_the_run_is_loaded(run: RunDir) -> None:
    assert torch.equal(RunIO(run).load_checkpoint(run.url_of(RunDir.checkpoint(3)))["weights"], torch.ones(1000))


def test_a_commit_that_differs_from_its_record_is_loaded_as_another_file_only(run: RunDir) -> None:
    data = run.read(RunDir.checkpoint(3))
    assert data is not None
    run.write(RunDir.checkpoint(3), data + b"\0")
    url = run.url_of(RunDir.checkpoint(3))
    with pytest.raises(Corrupt):
        RunIO(run).load_checkpoint(url)
    assert "weights" in RunIO().load_checkpoint(url)


def test_what_this_start_has_verified_is_loaded_by_that_record(run: RunDir) -> None:
    record = newest(run)
    assert record is not None
    run.remove(RunDir.record(3))
    url = run.url_of(RunDir.checkpoint(3))
    with pytest.raises(Corrupt):
        RunIO(run, replace(record, sha256=f"sha256:{'0' * 64}")).load_checkpoint(url)
    assert torch.equal(RunIO(run, record).load_checkpoint(url)["weights"], torch.ones(1000))
