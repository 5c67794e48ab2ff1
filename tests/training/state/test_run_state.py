"""What this project adds to a checkpoint, and what it makes of what others have written there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.training.state.run_state import KEY, RunState, read_run_state
from tests.support.commands import ROOT, command

STATE = RunState(
    facts={"world_size": 2, "seed": 42, "packages": {"torch": "2.13.0"}},
    epoch=1,
    batches=3,
    position=96,
    ledger=[{"epoch": 0}],
    ranks=[{"random": {"torch": torch.arange(4)}, "sums": {}}],
    metrics={"val_loss": 0.5},
    validation_pending=True,
    bucket_order=[1, 0],
)


@pytest.mark.parametrize("state", [STATE, replace(STATE, position=None, ledger=None, bucket_order=None)])
def test_a_state_comes_back_as_it_was_captured(state: RunState) -> None:
    assert RunState.of_checkpoint({KEY: state.to_dict()}) == state


def test_the_keys_are_those_of_the_first_release() -> None:
    names = ("schema", "facts", "epoch", "batches", "position", "ledger", "state", "owes_validation", "gradient_order")
    assert tuple(STATE.to_dict()) == names


def test_a_checkpoint_of_another_program_has_none() -> None:
    assert RunState.of_checkpoint({"state_dict": {}}) is None


def test_one_that_was_written_before_validations_could_be_left_is_read() -> None:
    old = STATE.to_dict()
    del old["owes_validation"]
    assert RunState.of_checkpoint({KEY: old}) == replace(STATE, validation_pending=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "schema 2; this version reads 1"),
        ({"schema": None}, "schema None"),
        ({"epoch": None}, "damaged state"),
        ({"batches": "many"}, "damaged state"),
        ({"state": []}, "damaged state"),
        ({"state": {"ranks": 3, "metrics": {}}}, "damaged state"),
        ({"ledger": 7}, "damaged state"),
        ({"gradient_order": ["x"]}, "damaged state"),
    ],
)
def test_a_state_that_cannot_be_understood_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=r"s3://x/y\.ckpt") as caught:
        RunState.of_checkpoint({KEY: {**STATE.to_dict(), **change}}, "s3://x/y.ckpt")
    assert words in str(caught.value)


@pytest.mark.parametrize("found", [3, "x", [], ["schema"]])
def test_what_is_no_mapping_is_refused(found: Any) -> None:
    with pytest.raises(UserError, match="of schema"):
        RunState.of_checkpoint({KEY: found})


def test_the_content_of_tensors_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.ckpt"
    torch.save({KEY: STATE.to_dict(), "state_dict": {"w": torch.rand(2_000_000)}}, path)
    from fsspec.implementations.local import LocalFileOpener

    read = []

    def counting(self: Any, *sizes: int) -> bytes:
        data: bytes = self.f.read(*sizes)
        read.append(len(data))
        return data

    monkeypatch.setattr(LocalFileOpener, "read", counting, raising=False)
    found = read_run_state(str(path))
    assert found is not None
    assert (found.epoch, found.position, found.metrics) == (1, 96, {"val_loss": 0.5})
    assert sum(read) < 200_000 < path.stat().st_size


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read_run_state(str(tmp_path / "x.ckpt"))


def test_a_file_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="it holds a list"):
        read_run_state(str(tmp_path / "x.ckpt"))


def test_it_is_read_without_lightning() -> None:
    import sys

    program = "import sys, pipeline.training.state.run_state as s; s.read_run_state(sys.argv[1])"
    program += "; assert not [name for name in sys.modules if name.startswith('lightning')]"
    ended = command(sys.executable, "-c", program, ROOT / "tests/golden/run/checkpoints/step-00000050.ckpt")
    assert ended.status == 0, ended.text
