"""All that a run directory holds is read, and what is missing or damaged is said and harms nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commands.report.run_facts import read_facts
from pipeline.run.run_dir import RECEIPT, SCORES, RunDir
from tests.support.commands import Ended, without
from tests.support.reported import reported
from tests.support.runs import FIT

App = Callable[..., Ended]


def test_everything_of_a_run_is_read_on_each_storage(storage: str) -> None:
    facts = read_facts(reported(storage))
    assert sorted(facts.attempts) == [1, 2]
    assert facts.restarts == [(200, 2, "storage")]
    assert facts.config["seed_everything"] == 0
    assert [each.step for each in facts.checkpoints] == [4, 2]
    assert facts.receipt is not None
    assert [each.name for each in facts.scores] == ["reconstruction_error", "correct"]
    assert len(facts.pictures.pictures) == 16
    assert facts.scalars.hidden == 6, "of 200 and 210"
    assert facts.scalars.curves["train_loss"].steps.tolist() == list(range(0, 400, 10))
    assert len(facts.telemetry.steps) == 40
    # The checkpoints of this run hold no bytes of a checkpoint.
    (said,) = facts.missing
    assert "what the ledger proves" in said


def test_what_a_run_has_not_is_said(tmp_path: Path) -> None:
    facts = read_facts(RunDir(str(tmp_path)))
    for word in ("attempt", "fit.yaml", "checkpoint", "TensorBoard", "telemetry", "not evaluated"):
        assert any(word in said for said in facts.missing), word


def test_damage_in_one_part_harms_no_other(tmp_path: Path) -> None:
    run = reported(str(tmp_path))
    run.write("fit.yaml", b"a: [")
    run.write(RECEIPT, b"{")
    run.write(SCORES, b"\x00")
    run.write(RunDir.attempt(2), b"torn")
    run.write(RunDir.record(4), b"torn")
    facts = read_facts(run)
    assert facts.config == {}
    assert any("fit.yaml cannot be read" in said for said in facts.missing)
    assert (facts.receipt, facts.scores) == (None, [])
    assert facts.attempts[2] == {}
    assert [step for step, _ in facts.uncommitted] == [4]
    assert facts.scalars.curves


@pytest.mark.parametrize("first_step", [None, "x", True, 1.5])
def test_an_attempt_without_a_first_step_is_no_restart(tmp_path: Path, first_step: object) -> None:
    run = reported(str(tmp_path))
    record = run.read_json(RunDir.attempt(2))
    assert record
    run.write_json(RunDir.attempt(2), {**record, "first_step": first_step})
    assert read_facts(run).restarts == []


def test_the_ledger_of_a_real_checkpoint_is_judged_without_torch(app: App, tmp_path: Path) -> None:
    assert app(*FIT, "--run_dir", tmp_path).status == 0
    without(
        ("torch", "lightning", "jsonargparse"),
        "from pipeline.commands.report.run_facts import read_facts; from pipeline.run.run_dir import RunDir\n"
        f"proof = read_facts(RunDir({str(tmp_path)!r})).proof; assert proof.proven, proof",
    )
