"""The ledger counts what training used, after the step that used it, and each epoch is proven or the run fails."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.training.state.run_state import read_run_state
from tests.support.commands import Ended
from tests.support.runs import TAMPERING

App = Callable[..., Ended]


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
    ended = app(*TAMPERING, f"--data.kind={kind}", f"--data.num_workers={workers}", "--run_dir", tmp_path)
    assert ended.status == 2, "another start would use the same samples"
    assert re.search(words, ended.err), ended.err
    assert "a loader or a wrapper around it" in ended.err
    assert not list(tmp_path.glob("checkpoints/*.json")), "what is wrong is not committed"


def test_a_wrapper_that_changes_nothing_is_fine(app: App, tmp_path: Path) -> None:
    assert app(*TAMPERING, "--run_dir", tmp_path).status == 0


def test_verify_reads_little_of_a_large_checkpoint(app: App, tmp_path: Path) -> None:
    assert app(*TAMPERING, "--run_dir", tmp_path).status == 0
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
    ended = app(*TAMPERING, "--trainer.overfit_batches=2", "--run_dir", tmp_path)
    assert ended.status == 2
    assert "trainer.overfit_batches=2: Lightning would give each of the 2 processes the same samples" in ended.err


def test_overfit_batches_in_one_process_trains_without_an_account(app: App, tmp_path: Path) -> None:
    assert app(*TAMPERING, "--trainer.overfit_batches=2", "--run_dir", tmp_path).status == 0
    assert "holds no ledger" in app("verify", "--run_dir", tmp_path).err
