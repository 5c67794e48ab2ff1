"""The ledger counts what training used, after the step that used it, and each epoch is proven or the run fails."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.epoch_record import EpochRecord, Tally
from pipeline.run.run_dir import RunDir
from pipeline.training.run_state import read_run_state
from tests.support.commands import Ended
from tests.support.runs import verified

App = Callable[..., Ended]
FIT = (
    *(
        "fit",
        "--model=tests.support.models.Regression",
        "--data=tests.support.models.Tampering",
        "--data.train=tests.support.models.Rows",
    ),
    *("--data.batch_size=16", "--trainer.enable_model_summary=false", "--trainer.max_epochs=3"),
)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("drops", r"epoch 0 should have used 101 samples .* and used 85: 16 samples were left out"),
        ("doubles", r"epoch 0 should have used 101 samples .* and used 112: 11 samples too many"),
        ("swaps", r"epoch 0 should have used 101 samples .* and used 101: the count is right but"),
    ],
)
def test_a_loader_that_drops_doubles_or_swaps_a_batch_fails_the_run(
    app: App, tmp_path: Path, kind: str, words: str, workers: int
) -> None:
    ended = app(*FIT, f"--data.kind={kind}", f"--data.num_workers={workers}", "--run_dir", tmp_path)
    assert ended.status == 1
    assert re.search(words, ended.err), ended.err
    assert "a loader or a wrapper around it" in ended.err
    assert not list(tmp_path.glob("checkpoints/*.json")), "what is wrong is not committed"


def test_a_wrapper_that_changes_nothing_is_fine(app: App, tmp_path: Path) -> None:
    assert app(*FIT, "--run_dir", tmp_path).status == 0


def test_verify_finds_what_is_wrong_within_an_epoch_too(app: App, tmp_path: Path) -> None:
    ended = app(*FIT, "--data.kind=doubles", "--checkpoints.every_n_steps=3", "--run_dir", tmp_path)
    assert ended.status == 1
    ended = app("verify", "--run_dir", tmp_path)
    # Six full batches were used, but one of them twice: the number is right, and only the hash can tell.
    assert ended.status == 1
    assert verified(ended)[0] == ["0", "96", "96", "0", "0", "FAILED", "open"]


@pytest.mark.parametrize(
    ("more", "rows"),
    [
        ((), [["0", "101", "101", "0", "0", "ok", "complete"]] * 3),
        (("--data.drop_last=true",), [["0", "96", "96", "0", "5", "ok", "complete"]] * 3),
        (("--trainer.limit_train_batches=4",), [["0", "64", "64", "0", "0", "ok", "limit_train_batches"]] * 3),
        (("--model=tests.support.models.SkipsTheRest",), [["0", "32", "32", "0", "0", "ok", "skipped"]] * 3),
        (
            ("--trainer.max_epochs=-1", "--trainer.max_steps=9"),
            [["0", "101", "101", "0", "0", "ok", "complete"], ["0", "32", "32", "0", "0", "ok", "max_steps"]],
        ),
        (
            ("--trainer.callbacks=tests.support.models.Stops",),
            [["0", "80", "80", "0", "0", "ok", "stopped"]],
        ),
        (
            ("--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=-1", "--trainer.max_steps=5"),
            [["0", "101", "101", "0", "0", "ok", "complete"], ["0", "32", "32", "0", "0", "ok", "max_steps"]],
        ),
    ],
)
def test_verify_says_how_each_epoch_was_closed(
    app: App, tmp_path: Path, more: tuple[str, ...], rows: list[list[str]]
) -> None:
    assert app(*FIT, *more, "--run_dir", tmp_path).status == 0
    ended = app("verify", "--run_dir", tmp_path)
    assert ended.status == 0, ended.out
    assert verified(ended) == [[str(epoch), *row[1:]] for epoch, row in enumerate(rows)]
    assert "every sample is accounted for" in ended.out


def test_verify_judges_a_running_run_by_what_is_committed(app: App, storage: str) -> None:
    assert app(*FIT, "--checkpoints.every_n_steps=2", "--run_dir", storage).status == 0
    run = RunDir(storage)
    for step in (21, 20):
        run.remove(RunDir.record(step))
    ended = app("verify", "--run_dir", storage)
    assert ended.status == 0
    assert "at step 18" in ended.out
    assert verified(ended)[-1] == ["2", "64", "64", "0", "0", "ok", "open"]


def rewrite(run: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the ledger in the newest checkpoint of a run, and its record so that it fits."""
    name = max(run.glob("checkpoints/*.ckpt"))
    checkpoint = torch.load(name, weights_only=True)
    change(checkpoint["pipeline"]["ledger"])
    torch.save(checkpoint, name)
    record = json.loads(name.with_suffix(".json").read_text())
    record["bytes"] = name.stat().st_size
    record["sha256"] = f"sha256:{hashlib.sha256(name.read_bytes()).hexdigest()}"
    name.with_suffix(".json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ledger: ledger[1]["consumed"].__setitem__(0, 100), "epoch 1 should have used 101 samples"),
        (lambda ledger: ledger[2]["consumed"].__setitem__(1, "0123456789abcdef"), "the count is right but"),
        (lambda ledger: ledger[0].update(closed="loader"), "some samples were left out"),
        (lambda ledger: ledger.pop(1), "epoch 1 has no record"),
    ],
)
def test_verify_exits_with_1_where_a_proof_fails(
    app: App, tmp_path: Path, change: Callable[[list[dict[str, Any]]], None], words: str
) -> None:
    assert app(*FIT, "--run_dir", tmp_path).status == 0
    rewrite(tmp_path, change)
    ended = app("verify", "--run_dir", tmp_path)
    assert ended.status == 1
    assert words in ended.out
    assert "every sample is accounted for" not in ended.out


def test_a_damaged_ledger_is_one_clear_message(app: App, tmp_path: Path) -> None:
    assert app(*FIT, "--run_dir", tmp_path).status == 0
    rewrite(tmp_path, lambda ledger: ledger[0].pop("samples"))
    ended = app("verify", "--run_dir", tmp_path)
    assert ended.status == 2
    assert "the ledger of step 21 is damaged" in ended.err
    ended = app(*FIT, "--trainer.max_epochs=4", "--run_dir", tmp_path)
    assert ended.status == 2
    assert "the checkpoint's ledger is damaged" in ended.err


def test_what_cannot_be_verified_is_status_2(app: App, tmp_path: Path) -> None:
    ended = app("verify", "--run_dir", tmp_path / "empty")
    assert ended.status == 2
    assert "has no checkpoint: there is nothing to verify yet" in ended.err
    foreign = (
        "fit",
        "--model=tests.support.models.Regression",
        "--data=tests.support.models.Own",
        "--trainer.max_epochs=1",
    )
    ended = app(*foreign, "--run_dir", tmp_path / "foreign")
    assert "Own is a data module of its own kind: samples are not accounted for" in ended.err
    ended = app("verify", "--run_dir", tmp_path / "foreign")
    assert ended.status == 2
    assert re.fullmatch(r"step 15  \d+ bytes  ok\n", ended.out), "its bytes are verified all the same"
    assert "holds no ledger" in ended.err
    assert app("verify").status == 2


def test_verify_reads_little_of_a_large_checkpoint(app: App, tmp_path: Path) -> None:
    assert app(*FIT, "--run_dir", tmp_path).status == 0
    name = max(tmp_path.glob("checkpoints/*.ckpt"))
    checkpoint = torch.load(name, weights_only=True)
    checkpoint["state_dict"]["large"] = torch.zeros(1 << 20)
    torch.save(checkpoint, name)
    # The large tensor's bytes are gone, and nobody misses them.
    data = name.read_bytes()
    at = data.index(b"\0" * 100_000)
    name.write_bytes(data[:at] + b"\1" * 100_000 + data[at + 100_000 :])
    found = read_run_state(str(name))
    assert found is not None
    assert found.ledger is not None
    assert len(found.ledger) == 3


def test_overfit_batches_in_more_than_one_process_is_refused(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1}
    for name, value in ranks.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("pipeline.process.topology.Topology.signal", lambda *_: None)  # no agent holds a store here
    ended = app(*FIT, "--trainer.overfit_batches=2", "--run_dir", tmp_path)
    assert ended.status == 2
    assert "trainer.overfit_batches=2: Lightning would give each of the 2 processes the same samples" in ended.err


def test_overfit_batches_in_one_process_trains_without_an_account(app: App, tmp_path: Path) -> None:
    assert app(*FIT, "--trainer.overfit_batches=2", "--run_dir", tmp_path).status == 0
    assert "holds no ledger" in app("verify", "--run_dir", tmp_path).err


def test_tallies_add_up_in_any_order_and_tell_every_exchange() -> None:
    indices = np.arange(1000)
    parts = [Tally.of(indices[start::3]) for start in (2, 0, 1)]
    assert sum(parts, Tally()) == Tally.of(indices)
    for wrong in (indices[1:], np.append(indices, 5), np.where(indices == 3, 4, indices), indices + 1):
        assert Tally.of(wrong) != Tally.of(indices)
    # Two exchanges that keep the sum and the sum of squares: 0+5+7 = 1+3+8, 0+25+49 = 1+9+64.
    assert Tally.of(np.array([0, 5, 7])) != Tally.of(np.array([1, 3, 8]))


def test_an_account_outlasts_being_written_and_read() -> None:
    account = EpochRecord(3, 1, 101, 64, 1, 2, Tally(65, 2**64 - 1), "complete")
    assert EpochRecord.from_dict(json.loads(json.dumps(account.as_dict()))) == account
    for broken in ({}, {**account.as_dict(), "consumed": [1]}, {**account.as_dict(), "epoch": None}, None):
        with pytest.raises(ValueError, match="not the record of an epoch"):
            EpochRecord.from_dict(broken)  # type: ignore[arg-type]


def test_shares_of_what_is_expected_add_up() -> None:
    for account in (
        EpochRecord(1, 2, 30_000, 30_000, 3),
        EpochRecord(1, 2, 30_000, 17_001),
        EpochRecord(0, 0, 5, 5, 11),
    ):
        whole = account.expected()
        assert whole.count == account.position + account.padded
        assert sum((account.expected(rank, 3) for rank in range(3)), Tally()) == whole
