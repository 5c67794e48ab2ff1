"""verify hashes every checkpoint again, and judges each epoch by what its ledger says."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended
from tests.support.runs import TAMPERING, verified

App = Callable[..., Ended]


def test_verify_finds_what_is_wrong_within_an_epoch_too(app: App, tmp_path: Path) -> None:
    ended = app(*TAMPERING, "--data.kind=doubles", "--checkpoints.every_n_steps=3", "--run_dir", tmp_path)
    assert ended.status == 2
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
    assert app(*TAMPERING, *more, "--run_dir", tmp_path).status == 0
    ended = app("verify", "--run_dir", tmp_path)
    assert ended.status == 0, ended.out
    assert verified(ended) == [[str(epoch), *row[1:]] for epoch, row in enumerate(rows)]
    assert "every sample is accounted for" in ended.out


def test_verify_judges_a_running_run_by_what_is_committed(app: App, storage: str) -> None:
    assert app(*TAMPERING, "--checkpoints.every_n_steps=2", "--run_dir", storage).status == 0
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
    assert app(*TAMPERING, "--run_dir", tmp_path).status == 0
    rewrite(tmp_path, change)
    ended = app("verify", "--run_dir", tmp_path)
    assert ended.status == 1
    assert words in ended.out
    assert "every sample is accounted for" not in ended.out


def test_a_damaged_ledger_is_one_clear_message(app: App, tmp_path: Path) -> None:
    assert app(*TAMPERING, "--run_dir", tmp_path).status == 0
    rewrite(tmp_path, lambda ledger: ledger[0].pop("samples"))
    ended = app("verify", "--run_dir", tmp_path)
    assert ended.status == 2
    assert "the ledger of step 21 is damaged" in ended.err
    ended = app(*TAMPERING, "--trainer.max_epochs=4", "--run_dir", tmp_path)
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
    assert "DataLoader of Rows: its samples are not accounted for" in ended.err
    ended = app("verify", "--run_dir", tmp_path / "foreign")
    assert ended.status == 2
    assert re.fullmatch(r"step 15  \d+ bytes  ok\n", ended.out), "its bytes are verified all the same"
    assert "holds no ledger" in ended.err
    assert app("verify").status == 2
