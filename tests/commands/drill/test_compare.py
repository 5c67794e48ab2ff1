"""A comparison of two runs overlooks nothing."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from pipeline.checkpoint.commit import newest, write_record
from pipeline.commands.drill.compare import Comparison, TrainedRun, compare, compare_closeness, compare_ledgers
from pipeline.commands.drill.step_log import FOLDER, StepLog
from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended
from tests.support.drilled import trained_run

App = Callable[..., Ended]


@pytest.fixture
def trained(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainedRun:
    monkeypatch.setenv(FOLDER, str(tmp_path / "log"))
    return trained_run(app, tmp_path)


def copied(
    trained: TrainedRun, folder: Path, change: Callable[[dict[str, Any]], object] = lambda checkpoint: None
) -> TrainedRun:
    """The same run, in whose last checkpoint something is another value."""
    copytree(trained.run.path, folder)
    run = RunDir(str(folder))
    record = newest(run)
    assert record is not None
    path = folder / record.name
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    data = path.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    write_record(run, replace(record, bytes=len(data), sha256=digest), overwrite=True)
    return TrainedRun(run, trained.log)


def failed(comparisons: list[Comparison]) -> dict[str, str]:
    return {each.name: each.found for each in comparisons if not each.holds}


def test_a_run_is_equal_to_itself(trained: TrainedRun, tmp_path: Path) -> None:
    found = compare(trained, copied(trained, tmp_path / "same"))
    assert failed(found) == {}
    assert {each.name for each in found} == {
        *("final step", "weights", "optimizers", "losses", "steps", "ledger", "verify"),
    }


def _flip(tensor: torch.Tensor) -> None:
    """Change the lowest bit of a tensor's first value."""
    tensor.view(-1).view(torch.uint8)[0] ^= 1


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda checkpoint: _flip(checkpoint["state_dict"]["layers.0.weight"]), "weights"),
        (lambda checkpoint: _flip(checkpoint["optimizer_states"][0]["state"][0]["exp_avg"]), "optimizers"),
        (lambda checkpoint: checkpoint["lr_schedulers"][0].update(last_epoch=7), "optimizers"),
        (lambda checkpoint: checkpoint.update(global_step=13), "final step"),
    ],
)
def test_one_bit_is_found(trained: TrainedRun, tmp_path: Path, change: Callable[[Any], object], name: str) -> None:
    assert list(failed(compare(trained, copied(trained, tmp_path / "other", change)))) == [name]


def test_a_negative_zero_is_not_zero_and_nan_is_itself(trained: TrainedRun, tmp_path: Path) -> None:
    def put(value: float) -> Callable[[Any], object]:
        return lambda checkpoint: checkpoint["state_dict"]["layers.0.bias"].fill_(value)

    zero, minus, nan = (copied(trained, tmp_path / str(value), put(value)) for value in (0.0, -0.0, float("nan")))
    assert "weights" in failed(compare(zero, minus))
    assert failed(compare(nan, nan)) == {}


def test_another_ledger_is_found(trained: TrainedRun, tmp_path: Path) -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint["pipeline"]["ledger"][0]["consumed"][0] += 1

    assert set(failed(compare(trained, copied(trained, tmp_path / "other", change)))) == {"ledger", "verify"}


def test_a_damaged_checkpoint_is_found(trained: TrainedRun, tmp_path: Path) -> None:
    other = copied(trained, tmp_path / "other")
    path = tmp_path / "other" / RunDir.checkpoint(7)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert list(failed(compare(trained, other))) == ["verify"]


def test_another_loss_and_a_missing_step_are_found(trained: TrainedRun, tmp_path: Path) -> None:
    log = StepLog(tmp_path / "others", 1)
    others = TrainedRun(trained.run, log)
    notes = trained.log.first
    log.ranks[0] = [*notes, replace(notes[4], pid=1)]
    assert failed(compare(trained, others)) == {}, "a repeated step is the same one"
    assert log.repeated == 1
    log.ranks[0] = [*notes, replace(notes[4], losses=("0x1.8p+0",))]
    found = failed(compare(trained, others))
    assert list(found) == ["losses"]
    assert "step 5 on rank 0: 0x1.8p+0, was " in found["losses"]
    log.ranks[0] = [*notes[:8], *notes[9:]]
    assert failed(compare(trained, others)) == {"steps": "step 9 is missing"}
    log.ranks[0] = [*notes, replace(notes[0], step=15)]
    assert failed(compare(trained, others)) == {"steps": "step 15 is one too many"}


def test_after_a_resize_weights_are_compared_for_closeness_and_losses_before_it(
    trained: TrainedRun, tmp_path: Path
) -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        _flip(checkpoint["state_dict"]["layers.0.weight"])

    other = copied(trained, tmp_path / "other", change)
    log = StepLog(tmp_path / "others", 1)
    log.ranks[0] = [replace(note, losses=("0x1p+0",)) if note.step > 7 else note for note in trained.log.first]
    found = compare(trained, TrainedRun(other.run, log), resized_at=7)
    assert failed(found) == {}
    assert "resized" in " ".join(each.found for each in found)
    account = {"epoch": 0, "seed": 0, "samples": 9, "closed": "complete", "withheld": [0, ""], "dropped": 0}
    padded, plain = ({**account, "consumed": [9 + more, "x"], "padded": more} for more in (1, 0))
    assert compare_ledgers([padded], [plain], resized=True).holds, "the tail is another one in another world"
    assert not compare_ledgers([padded], [plain]).holds
    assert not compare_ledgers([padded], [{**padded, "samples": 8}], resized=True).holds
    assert not compare_ledgers([padded], [], resized=True).holds
    left = {"weight": torch.zeros(3)}
    assert not compare_closeness("weights", left, {"weight": torch.ones(3)}).holds
    assert not compare_closeness("weights", left, {"other": torch.zeros(3)}).holds


def apart(trained: TrainedRun, folder: Path, by: float) -> TrainedRun:
    """The same run with weights that are so far apart."""
    return copied(trained, folder, lambda checkpoint: checkpoint["state_dict"]["layers.0.weight"].add_(by))


@pytest.mark.parametrize(
    ("natural", "by", "holds"), [(0.5, 0.4, True), (0.5, 5.0, False), (0.0, 0.4, False), (0.5, float("nan"), False)]
)
def test_after_a_resize_a_model_that_depends_on_the_world_size_is_judged_by_how_much_it_does(
    trained: TrainedRun, tmp_path: Path, natural: float, by: float, holds: bool
) -> None:
    asked = []

    def resized() -> TrainedRun:
        asked.append(True)
        return apart(trained, tmp_path / "resized", natural)

    found = compare(trained, apart(trained, tmp_path / "drilled", by), 3, resized)
    (weights,) = (each for each in found if each.name == "weights")
    assert weights.holds == holds, weights.found
    assert asked == [True]
    assert ("this model depends on the world size" in weights.found) == (natural > 0 and by == by)


def test_after_a_resize_weights_that_are_close_need_no_other_training(trained: TrainedRun, tmp_path: Path) -> None:
    found = compare(trained, apart(trained, tmp_path / "drilled", 1e-4), 3, lambda: pytest.fail("was asked"))
    assert "weights" not in failed(found)
