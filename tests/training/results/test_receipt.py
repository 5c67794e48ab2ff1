"""Each test sample is scored exactly once, and a receipt proves it or says loudly that it cannot."""

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.support.commands import Ended, assert_one_message
from tests.support.models import Own, Regression, Returning, Rows

App = Callable[..., Ended]


def trained(app: App, run: str, model: str = "Regression", *more: str) -> None:
    ended = app(
        "fit",
        *("--model", f"tests.support.models.{model}", "--data", "tests.support.models.Own", "--run_dir", run),
        *("--trainer.max_epochs=1", "--trainer.enable_model_summary=false", *more),
    )
    assert ended.status == 0, ended.err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained run of Returning, made once."""
    from pipeline.cli import main

    url = str(tmp_path_factory.mktemp("evaluation") / "run")
    arguments = "fit --model tests.support.models.Returning --data tests.support.models.Own --trainer.max_epochs=1"
    assert main([*arguments.split(), "--run_dir", url, "--trainer.enable_model_summary=false"]) == 0
    return url


def receipt_of(run: str) -> dict[str, Any]:
    return dict(json.loads(Path(run, "evaluation/receipt.json").read_text()))


def by_hand(run: str, model: type[Regression]) -> tuple[torch.Tensor, float]:
    """Predictions and mean loss over the samples, without any of the pipeline's evaluation."""
    checkpoint = torch.load(f"{run}/{newest_name(run)}", weights_only=True)
    module = model()
    module.load_state_dict(checkpoint["state_dict"])
    module.eval()
    rows = Rows()
    with torch.no_grad():
        prediction = module(rows.x)
    return prediction.squeeze(1), float(functional.mse_loss(prediction, rows.y))


def newest_name(run: str) -> str:
    return max(str(path.relative_to(run)) for path in Path(run).glob("checkpoints/*.ckpt"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["plain", "shuffled", "list of one", "one by one", "one replica"])
def test_101_samples_in_batches_of_7_are_scored_once_each(app: App, run: str, kind: str, workers: int) -> None:
    ended = app("test", "--run_dir", run, f"--data.kind={kind}", f"--data.num_workers={workers}")
    assert ended.status == 0, ended.err
    receipt = receipt_of(run)
    assert (receipt["samples_expected"], receipt["samples_scored"]) == (101, 101)
    assert (receipt["duplicates"], receipt["missing"]) == (0, 0)
    assert receipt["duplicate_indices"] == receipt["missing_indices"] == []
    assert "101 of 101 test samples scored, once each" in ended.err


def test_the_metric_is_the_mean_over_the_samples_computed_by_hand(app: App, run: str) -> None:
    assert app("test", "--run_dir", run).status == 0
    assert receipt_of(run)["metrics"]["test_loss"] == pytest.approx(by_hand(run, Returning)[1], rel=1e-5)


def test_scores_are_one_row_a_sample_in_ascending_order_with_the_models_own_values(app: App, run: str) -> None:
    assert app("test", "--run_dir", run, "--data.kind=shuffled").status == 0
    with open(f"{run}/evaluation/scores.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "prediction"], "1-D tensors of batch length only"
    assert [int(row["index"]) for row in rows] == list(range(101))
    predictions = np.array([float(row["prediction"]) for row in rows])
    np.testing.assert_allclose(predictions, by_hand(run, Returning)[0].numpy(), rtol=1e-4, atol=1e-6)


def test_the_receipt_has_every_field_of_the_contract(app: App, run: str) -> None:
    assert app("test", "--run_dir", run).status == 0
    receipt = receipt_of(run)
    record = json.loads(Path(run, newest_name(run)).with_suffix(".json").read_text())
    assert set(receipt) == {
        *("schema", "checkpoint", "checkpoint_sha256", "dataset", "dataset_fingerprint", "fingerprint_kind"),
        *("samples_expected", "samples_scored", "duplicates", "missing", "duplicate_indices", "missing_indices"),
        *("devices", "metrics", "unproven", "seconds", "created"),
    }
    assert receipt["unproven"] == []
    assert receipt["checkpoint_sha256"] == record["sha256"]
    assert receipt["dataset"] == "tests.support.models.Rows"
    assert receipt["devices"] == 1
    assert receipt["schema"] == 1


def test_what_is_no_column_of_numbers_goes_to_a_file_beside_the_table_and_that_is_said(app: App, run: str) -> None:
    ended = app("test", "--run_dir", run, "--data.kind=shuffled")
    assert ended.status == 0, ended.err
    assert "loss, note, x of what test_step returned is no column of numbers: see" in ended.err
    found = torch.load(f"{run}/evaluation/outputs.pt", weights_only=True)
    assert sorted(found["index"].tolist()) == list(range(101))
    assert torch.equal(found["outputs"]["x"], Rows().x[found["index"]])
    assert found["outputs"]["note"] == ["not a tensor"] * 15
    assert len(found["outputs"]["loss"]) == len(found["batch_sizes"]) == 15


def test_a_plain_module_whose_test_step_only_logs_gets_a_receipt_and_only_indices(app: App, tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    trained(app, url)
    assert app("test", "--run_dir", url).status == 0
    assert receipt_of(url)["samples_scored"] == 101
    assert receipt_of(url)["metrics"]["test_loss"] == pytest.approx(by_hand(url, Regression)[1], rel=1e-5)
    assert Path(url, "evaluation/scores.csv").read_text().splitlines()[:3] == ["index", "0", "1"]


@pytest.mark.parametrize(
    ("kind", "missing", "duplicates"),
    [
        ("loader drops", range(7, 14), 0),
        # The trainer asks for as many batches as the loader has by its length, so the last one is never read.
        ("loader doubles", range(98, 101), 7),
        ("loader swaps", range(7, 14), 7),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_drops_doubles_or_swaps_a_batch_fails_the_proof(
    app: App, run: str, kind: str, missing: range, duplicates: int, workers: int
) -> None:
    ended = app("test", "--run_dir", run, f"--data.kind={kind}", f"--data.num_workers={workers}")
    assert ended.status == 2
    assert "is incomplete" in ended.err
    receipt = receipt_of(run)
    assert (receipt["missing"], receipt["duplicates"]) == (len(missing), duplicates)
    assert receipt["missing_indices"] == list(missing)
    assert receipt["dataset_fingerprint"] is None


def test_a_dataset_that_drops_a_sample_of_a_batch_fails_the_proof(app: App, run: str) -> None:
    ended = app("test", "--run_dir", run, "--data.kind=dataset drops")
    assert ended.status == 2
    assert "returned 6 samples for 7 indices" in ended.err


@pytest.mark.parametrize("fault", ["drops", "doubles", "swaps"])
def test_a_wrapper_between_dataset_and_collate_fails_the_proof(
    app: App, run: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.data.sample_ids import _IdentifiedDataset

    original = _IdentifiedDataset.__getitems__

    def wrapped(self: Any, indices: list[int]) -> list[Any]:
        samples = original(self, indices)
        if indices[0] != 7:
            return samples
        return {"drops": samples[1:], "doubles": [*samples, samples[0]], "swaps": [samples[1], *samples[1:]]}[fault]

    monkeypatch.setattr(_IdentifiedDataset, "__getitems__", wrapped)
    assert app("test", "--run_dir", run).status == 2
    receipt = receipt_of(run)
    assert receipt["missing_indices"] == ([7] if fault in ("drops", "swaps") else [])
    assert receipt["duplicate_indices"] == {"drops": [], "doubles": [7], "swaps": [8]}[fault]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("drop_last", "drop_last=True leaves 3 of 101 test samples out"),
        ("replacement", "RandomSampler could repeat"),
        ("more samples", "RandomSampler could repeat"),
        ("weighted", "WeightedRandomSampler could repeat"),
        ("two replicas", "DistributedSampler could repeat"),
        ("own batches", "could repeat"),
        ("stream", "no length"),
        ("two loaders", "2 loaders"),
        ("a list", "covers one torch DataLoader"),
        ("empty", "is empty"),
    ],
)
def test_a_loader_that_could_leave_out_or_repeat_a_sample_is_refused(app: App, run: str, kind: str, words: str) -> None:
    ended = app("test", "--run_dir", run, f"--data.kind={kind}")
    assert ended.status == 2, ended.err
    assert words in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("kind", "words", "expected", "scored"),
    [
        ("drop_last", "drop_last=True leaves 3 of 101 test samples out", 101, 98),
        ("two replicas", "DistributedSampler could repeat", 101, 51),
        ("own batches", "could repeat", 101, 3),
        ("stream", "no length", None, 1),
        ("two loaders", "2 loaders", None, 202),
        ("no torch loader", "returns a _Wrapped: a receipt covers one torch DataLoader", None, 101),
        ("loader drops", "the loader _Drops makes its batches in a way of its own", None, 94),
        ("loader augments", "the loader _Augments makes its batches in a way of its own", None, 101),
    ],
)
def test_what_cannot_be_proven_is_evaluated_where_the_user_says_so(
    app: App, run: str, kind: str, words: str, expected: int | None, scored: int
) -> None:
    if not kind.startswith("loader"):
        ended = app("test", "--run_dir", run, f"--data.kind={kind}")
        assert ended.status == 2
        assert "--unproven true" in ended.err
    ended = app("test", "--run_dir", run, f"--data.kind={kind}", "--unproven=true")
    assert ended.status == 0, ended.err
    receipt = receipt_of(run)
    assert words in " ".join(receipt["unproven"])
    assert f"{scored} test samples scored, not proven: " in ended.err
    assert (receipt["samples_expected"], receipt["samples_scored"]) == (expected, scored)
    assert (receipt["missing"] is None) == (receipt["duplicates"] is None) == (expected is None)
    assert receipt["metrics"]
    table = Path(run, "evaluation/scores.csv").read_text().splitlines()
    assert table[0].split(",")[0] == ("position" if expected is None else "index")
    assert len(table) == 1 + scored + (receipt["duplicates"] or 0)


def test_what_can_be_proven_is_proven_also_where_it_need_not_be(app: App, run: str) -> None:
    ended = app("test", "--run_dir", run, "--unproven=true")
    assert ended.status == 0, ended.err
    assert "101 of 101 test samples scored, once each" in ended.err
    assert receipt_of(run)["unproven"] == []


def test_a_checkpoint_of_plain_lightning_is_evaluated_where_the_user_says_so(app: App, tmp_path: Path) -> None:
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    model = Regression()
    trainer.fit(model, Own())
    path, run = tmp_path / "theirs.ckpt", str(tmp_path / "run")
    trainer.save_checkpoint(path)
    theirs = ("test", "--ckpt_path", path, "--run_dir", run)
    more = ("--model=tests.support.models.Regression", "--data=tests.support.models.Own")
    ended = app(*theirs, *more)
    assert_one_message(ended, "what it was trained on is not known. To evaluate all the same")
    ended = app(*theirs, *more, "--unproven=true")
    assert ended.status == 0, ended.err
    receipt = receipt_of(run)
    assert receipt["unproven"] == [
        f"the checkpoint {path} is of another program, or of another run: what it was trained on is not known"
    ]
    assert (receipt["samples_scored"], receipt["missing"]) == (101, 0)
    assert receipt["checkpoint_sha256"] == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    expected = trainer.test(model, datamodule=Own(), verbose=False)[0]["test_loss"]
    assert receipt["metrics"]["test_loss"] == pytest.approx(expected)
    assert_one_message(app(*theirs, "--unproven=true"), "holds no fit.yaml")


def test_a_metric_that_is_nan_is_said(app: App, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    trained(app, run, "LogsNaN")
    ended = app("test", "--run_dir", run)
    assert ended.status == 0, ended.err
    assert "test_loss is nan, no finite number" in ended.err
    assert receipt_of(run)["metrics"] == {"test_loss": None}


@pytest.mark.parametrize("limit", ["3", "0.5", "0"])
def test_a_limit_that_leaves_samples_out_is_refused(app: App, run: str, limit: str) -> None:
    ended = app("test", "--run_dir", run, f"--trainer.limit_test_batches={limit}")
    assert ended.status == 2
    assert f"trainer.limit_test_batches={limit}" in ended.err.replace("=0.0 ", "=0 ")


@pytest.mark.parametrize("limit", ["15", "1.0", "100"])
def test_a_limit_that_leaves_nothing_out_is_taken(app: App, run: str, limit: str) -> None:
    assert app("test", "--run_dir", run, f"--trainer.limit_test_batches={limit}").status == 0


def test_more_than_one_process_is_refused(app: App, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1}
    for name, value in ranks.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("pipeline.process.topology.Topology.signal", lambda *_: None)  # no agent holds a store here
    ended = app("test", "--run_dir", run)
    assert ended.status == 2
    assert "WORLD_SIZE=2" in ended.err
    assert "Start one process" in ended.err


def test_more_than_one_device_is_refused(app: App, run: str) -> None:
    ended = app("test", "--run_dir", run, "--trainer.devices=2")
    assert ended.status == 2
    assert "trainer.devices" in ended.err


def test_under_fast_dev_run_no_receipt_is_written(app: App, tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    trained(app, url)
    before = sorted(path.name for path in Path(url).rglob("*"))
    assert app("test", "--run_dir", url, "--trainer.fast_dev_run=true").status == 0
    assert sorted(path.name for path in Path(url).rglob("*")) == before


def test_the_checkpoint_is_chosen_by_name_by_step_and_by_url(app: App, tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    trained(app, url, "Regression", "--checkpoints.monitor=val_loss", "--trainer.max_epochs=3")
    steps = sorted(int(path.stem[5:]) for path in Path(url).glob("checkpoints/*.ckpt"))
    assert len(steps) == 3
    for which, step in (("latest", steps[2]), (str(steps[0]), steps[0])):
        assert app("test", "--run_dir", url, "--checkpoint", which).status == 0
        assert receipt_of(url)["checkpoint"].endswith(f"step-{step:08d}.ckpt")
    assert app("test", "--run_dir", url, "--ckpt_path", f"{url}/checkpoints/step-{steps[1]:08d}.ckpt").status == 0
    receipt = receipt_of(url)
    assert (
        receipt["checkpoint_sha256"]
        == json.loads(Path(url, f"checkpoints/step-{steps[1]:08d}.json").read_text())["sha256"]
    )


def test_model_and_data_come_from_the_run_and_the_model_cannot_be_changed(app: App, run: str) -> None:
    ended = app("test", "--run_dir", run, "--model.learning_rate=0.5")
    assert ended.status == 2
    assert "model.learning_rate=0.5" in ended.err
    assert app("test", "--run_dir", run, "--data.batch_size=50").status == 0


def test_the_fingerprint_is_of_the_content_alone(app: App, run: str) -> None:
    fingerprints = set()
    for flags in ((), ("--data.batch_size=50",), ("--data.kind=shuffled", "--data.num_workers=2")):
        assert app("test", "--run_dir", run, *flags).status == 0
        assert receipt_of(run)["fingerprint_kind"] == "content"
        fingerprints.add(receipt_of(run)["dataset_fingerprint"])
    assert len(fingerprints) == 1
    assert app("test", "--run_dir", run, "--data.n=100").status == 0
    assert receipt_of(run)["dataset_fingerprint"] not in fingerprints


def test_an_evaluation_on_every_storage(app: App, storage: str) -> None:
    trained(app, storage)
    ended = app("test", "--run_dir", storage)
    assert ended.status == 0, ended.err
    from pipeline.run.run_dir import RECEIPT, RunDir

    assert (RunDir(storage).read_json(RECEIPT) or {})["samples_scored"] == 101


def test_a_run_that_was_never_trained_is_one_clear_message(app: App, storage: str) -> None:
    ended = app("test", "--run_dir", storage)
    assert ended.status == 2
    assert "nothing was trained there" in ended.err
