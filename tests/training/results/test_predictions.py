"""`predict` keeps what the model says of each sample: once, in order, whatever it returns and wherever it is killed."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended, assert_one_message, torchrun
from tests.support.runs import ROWS

App = Callable[..., Ended]
DATA = ("--data.predict=tests.support.predicting.Numbers", "--data.eval_batch_size=7")
FORMS = ("matrix", "mapping", "ragged", "nested", "named tuple", "array", "nothing", "object")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained run, made once."""
    from pipeline.cli import main

    url = str(tmp_path_factory.mktemp("predictions") / "run")
    model = ("--model", "tests.support.predicting.Predicts")
    assert main(["fit", *ROWS, *model, "--trainer.max_epochs=1", "--run_dir", url]) == 0
    return url


def parts(run: str, folder: str = "predictions") -> dict[str, bytes]:
    where = RunDir(run)
    names = sorted(name.rsplit("/", 1)[-1] for name in where.fs.ls(f"{where.path}/{folder}", detail=False))
    return {name: where.read(f"{folder}/{name}") or b"" for name in names if name.startswith("part-")}


def loaded(data: bytes) -> dict[str, Any]:
    return dict(torch.load(io.BytesIO(data), weights_only=True))


def receipt(run: str) -> dict[str, Any]:
    return RunDir(run).read_json("predictions/receipt.json") or {}


def column(run: str, name: str = "prediction", folder: str = "predictions") -> list[Any]:
    tables = [pyarrow.parquet.read_table(io.BytesIO(data)) for data in parts(run, folder).values()]
    return [each for table in tables for each in table[name].to_pylist()]


def test_each_sample_is_predicted_once_in_order_on_every_storage(app: App, storage: str) -> None:
    model = ("--model", "tests.support.predicting.Predicts")
    assert app("fit", *ROWS, *model, "--trainer.max_epochs=1", "--run_dir", storage).status == 0
    ended = app("predict", "--run_dir", storage, *DATA)
    assert ended.status == 0, ended.err
    assert f"finished: predictions of 101 samples are in {storage}/predictions" in ended.err
    assert column(storage, "index") == list(range(101))
    assert column(storage) == [float(index) for index in range(101)]
    found = receipt(storage)
    assert (found["samples_expected"], found["samples_predicted"]) == (101, 101)
    assert (found["duplicates"], found["missing"], found["devices"]) == (0, 0, 1)
    assert found["checkpoint"].endswith("checkpoints/step-00000007.ckpt")
    assert found["checkpoint_sha256"].startswith("sha256:")
    assert found["loaders"][0]["dataset"] == "tests.support.predicting.Numbers"
    assert RunDir(storage).read("predict.yaml") is not None


@pytest.mark.parametrize("kind", FORMS)
def test_whatever_predict_step_returns_is_kept(app: App, base: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = base
    monkeypatch.setenv("PREDICT", kind)
    ended = app("predict", "--run_dir", run, *DATA)
    if kind == "object":
        assert ended.status == 2
        assert "what predict_step returns: predictions[0] (and 14 more like it) is a pathlib.PosixPath" in ended.err
        assert ended.err.endswith("Return str() of it instead\n")
        return
    assert ended.status == 0, ended.err
    assert receipt(run)["samples_predicted"] == 101
    (data,) = parts(run).values()
    if kind in ("matrix", "mapping", "array", "named tuple"):
        assert column(run, "index") == list(range(101))
        expected: dict[str, dict[str, list[Any]]] = {
            "matrix": {"prediction": [[float(index)] * 4 for index in range(101)]},
            "mapping": {
                "value": [float(index) for index in range(101)],
                "name": [f"sample {index}" for index in range(101)],
            },
            "named tuple": {"label": [str(index) for index in range(101)]},
            "array": {"prediction": [float(index) for index in range(101)]},
        }
        assert {name: column(run, name) for name in expected[kind]} == expected[kind]
        return
    content = loaded(data)
    assert torch.equal(torch.cat(content["index"]), torch.arange(101))
    assert len(content["predictions"]) == 15
    first = content["predictions"][0]
    if kind == "nothing":
        assert first is None
        assert "predict_step returned None for all samples" in ended.err
    elif kind == "ragged":
        assert [each.tolist() for each in first] == [[], [0], [0, 1], [], [0], [0, 1], []]
    else:
        assert [float(each["box"]) for each in first["boxes"]] == [0, 1, 2, 3, 4, 5, 6]
        assert float(first["loss"]) == 3


def test_two_processes_predict_each_sample_once(base: str) -> None:
    ended = torchrun(2, "-m", "pipeline", "predict", "--run_dir", base, *DATA)
    assert ended.status == 0, ended.text
    assert ended.text.count("finished: predictions of 101 samples are in") == 1
    assert list(parts(base)) == ["part-0000000000-0000000050.parquet", "part-0000000050-0000000101.parquet"]
    assert column(base, "index") == list(range(101))
    assert column(base) == [float(index) for index in range(101)]
    assert (receipt(base)["devices"], receipt(base)["duplicates"]) == (2, 0)


def test_a_writer_of_the_users_on_two_processes_gets_each_sample_once(base: str, tmp_path: Path) -> None:
    writer = ("--trainer.callbacks=tests.support.predicting.Writes", f"--trainer.callbacks.folder={tmp_path}/mine")
    ended = torchrun(2, "-m", "pipeline", "predict", "--run_dir", base, *DATA, *writer)
    assert ended.status == 0, ended.text
    assert "predictions are written by Writes, and not to" in ended.text
    written = [torch.load(path, weights_only=True) for path in (tmp_path / "mine").glob("*.pt")]
    assert sorted(index for indices, _ in written for index in indices) == list(range(101))
    for indices, prediction in written:
        assert prediction.tolist() == indices


def test_a_prediction_that_was_killed_continues_where_it_was(
    app: App, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREDICT_FAILS_AT", "8")
    monkeypatch.setattr("pipeline.training.results.predictions._PART_SAMPLES", 21)
    with pytest.raises(RuntimeError, match="on purpose"):
        app("predict", "--run_dir", base, *DATA)
    before = parts(base)
    assert list(before) == ["part-0000000000-0000000021.parquet", "part-0000000021-0000000042.parquet"]
    assert receipt(base) == {}
    monkeypatch.delenv("PREDICT_FAILS_AT")
    ended = app("predict", "--run_dir", base, *DATA)
    assert ended.status == 0, ended.err
    assert "resuming predictions: 42 of 101 samples are written already" in ended.err
    assert {name: data for name, data in parts(base).items() if name in before} == before
    assert column(base, "index") == list(range(101))
    assert receipt(base)["samples_predicted"] == 101
    ended = app("predict", "--run_dir", base, *DATA, "--data.predict.n=30")
    assert ended.status == 0, ended.err
    assert column(base, "index") == list(range(30)), "other data start from scratch"


def test_one_process_continues_what_two_have_left(app: App, base: str) -> None:
    assert app("predict", "--run_dir", base, *DATA).status == 0
    run = RunDir(base)
    data = run.read("predictions/part-0000000000-0000000101.parquet") or b""
    for name in ("part-0000000000-0000000101.parquet", "receipt.json"):
        run.remove(f"predictions/{name}")
    for start, stop in ((14, 21), (50, 57), (90, 101)):
        table = pyarrow.parquet.read_table(io.BytesIO(data)).slice(start, stop - start)
        pyarrow.parquet.write_table(table, f"{base}/predictions/part-{start:010d}-{stop:010d}.parquet")
    ended = app("predict", "--run_dir", base, *DATA)
    assert "resuming predictions: 25 of 101 samples" in ended.err
    assert [name[5:26] for name in parts(base)] == [
        *("0000000000-0000000014", "0000000014-0000000021", "0000000021-0000000050"),
        *("0000000050-0000000057", "0000000057-0000000090", "0000000090-0000000101"),
    ]
    assert column(base) == [float(index) for index in range(101)]


def test_a_prediction_that_is_preempted_keeps_what_it_has(app: App, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREDICT_STOPS_AT", "3")
    ended = app("predict", "--run_dir", base, *DATA)
    assert ended.status == 75, ended.err
    assert list(parts(base)) == ["part-0000000000-0000000028.parquet"]
    assert "preempted while predicting" in ended.err


@pytest.mark.parametrize(
    ("kind", "workers"), [("plain", 0), ("plain", 2), ("shuffled, without the last", 0), ("one by one", 0)]
)
def test_a_loader_of_the_users_gives_each_sample_once_in_order(
    app: App, base: str, kind: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ("--data=tests.support.predicting.BringsPredictLoaders", f"--data.kind={kind}")
    if kind == "one by one":
        monkeypatch.setenv("PREDICT", "a number")
    ended = app("predict", "--run_dir", base, *data, f"--data.num_workers={workers}")
    assert ended.status == 0, ended.err
    assert receipt(base)["samples_predicted"] == 101
    if kind == "one by one":
        (content,) = map(loaded, parts(base).values())
        assert content["predictions"] == [float(index) for index in range(101)]
    else:
        assert column(base) == [float(index) for index in range(101)]


def test_several_loaders_go_to_a_folder_each(app: App, base: str) -> None:
    ended = app("predict", "--run_dir", base, "--data=tests.support.predicting.BringsPredictLoaders", "--data.kind=two")
    assert ended.status == 0, ended.err
    assert column(base, folder="predictions/loader-0") == [float(index) for index in range(101)]
    assert column(base, folder="predictions/loader-1") == [float(index) for index in range(10)]
    assert (receipt(base)["samples_expected"], receipt(base)["samples_predicted"]) == (111, 111)


def test_a_sampler_of_the_users_decides_which_samples_and_says_so(app: App, base: str) -> None:
    data = ("--data=tests.support.predicting.BringsPredictLoaders", "--data.kind=a subset")
    ended = app("predict", "--run_dir", base, *data)
    assert ended.status == 0, ended.err
    assert "in the order of the loader" in ended.err
    assert sorted(column(base, "index")) == [2, 4, 8]
    assert column(base) == [float(index) for index in column(base, "index")]
    assert receipt(base)["samples_predicted"] == 3


@pytest.mark.parametrize("kind", ["a stream", "own", "halves"])
def test_what_does_not_tell_its_samples_is_written_in_its_order_and_says_so(app: App, base: str, kind: str) -> None:
    data = ("--data=tests.support.predicting.BringsPredictLoaders", f"--data.kind={kind}")
    ended = app("predict", "--run_dir", base, *data)
    assert ended.status == 0, ended.err
    (content,) = map(loaded, parts(base).values())
    sizes = [len(each) for each in content["predictions"]]
    assert sizes == {"a stream": [4, 4, 2], "own": [2, 3], "halves": [2, 2, 2, 2]}[kind]
    assert content["index"] == [None] * len(sizes)
    assert "does not tell which samples it gives" in receipt(base)["loaders"][0]["unproven"]
    assert receipt(base)["samples_predicted"] is None


@pytest.mark.slow
def test_what_does_not_tell_its_samples_is_refused_on_two_processes(base: str) -> None:
    data = ("--data=tests.support.predicting.BringsPredictLoaders", "--data.kind=own")
    ended = torchrun(2, "-m", "pipeline", "predict", "--run_dir", base, *data)
    assert "cannot be spread over 2 processes. Start one" in ended.text


def test_without_pyarrow_columns_are_torchs_files(app: App, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREDICT", "mapping")
    monkeypatch.setattr("pipeline.training.results.outputs.find_spec", lambda _: None)
    ended = app("predict", "--run_dir", base, *DATA)
    assert ended.status == 0, ended.err
    (content,) = map(loaded, parts(base).values())
    assert torch.equal(content["index"], torch.arange(101))
    assert torch.equal(content["predictions"]["value"], torch.arange(101.0))
    assert content["predictions"]["name"][100] == "sample 100"


def test_what_is_the_users_in_the_folder_stays(app: App, base: str) -> None:
    mine = Path(base, "predictions", "part-of-mine.pt")
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    assert app("predict", "--run_dir", base, *DATA).status == 0
    assert mine.read_text() == "mine"
    mine.unlink()


@pytest.fixture(scope="module")
def collated(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained run whose model takes whatever a collate function makes."""
    from pipeline.cli import main

    url = str(tmp_path_factory.mktemp("collated") / "run")
    model = ("--model", "tests.support.collates.TakesAnything")
    assert main(["fit", *ROWS, *model, "--trainer.max_epochs=1", "--run_dir", url]) == 0
    return url


@pytest.mark.parametrize(
    ("collate", "expected"),
    [
        ("without_none", [0, 1, 3, 4, *range(6, 20)]),
        ("sorted_in_place", list(range(20))),
        ("packed", None),
        ("filled_up", None),
    ],
)
def test_predictions_are_of_the_samples_that_the_model_was_given(
    app: App, collated: str, collate: str, expected: Any
) -> None:
    dataset = "Gaps" if collate in ("without_none", "filled_up") else "Indexed"
    module = "tests.support.collates" if dataset == "Gaps" else "tests.support.models"
    data = (f"--data.predict={module}.{dataset}", "--data.predict.n=20", "--data.eval_batch_size=7")
    ended = app("predict", "--run_dir", collated, *data, f"--data.collate_fn=tests.support.collates.{collate}")
    assert ended.status == 0, ended.err
    found = receipt(collated)
    assert (found["samples_expected"], found["missing"], found["duplicates"]) == (20, 0, 0)
    if expected is None:
        assert f"which sample each prediction is of cannot be told: {collate} made " in ended.err
        (content,) = map(loaded, parts(collated).values())
        assert torch.equal(torch.cat(content["index"]), torch.arange(20))
        assert f"{collate} made" in found["loaders"][0]["unproven"]
        return
    assert column(collated, "index") == expected
    assert [row[0] for row in column(collated)] == expected
    assert (found["samples_predicted"], found["loaders"][0]["withheld"]) == (len(expected), 20 - len(expected))


def test_return_predictions_says_where_they_are(app: App, base: str) -> None:
    ended = app("predict", "--run_dir", base, *DATA, "--return_predictions=true")
    assert ended.status == 0, ended.err
    assert f"a command returns nothing, read them from {base}/predictions" in ended.err


def test_a_limit_is_kept_to_and_the_receipt_shows_what_is_missing(app: App, base: str) -> None:
    ended = app("predict", "--run_dir", base, *DATA, "--trainer.limit_predict_batches=2")
    assert ended.status == 0, ended.err
    assert "predictions of 14 of 101 samples" in ended.err
    assert receipt(base)["missing"] == 87


def test_predict_without_a_run_directory_is_one_message(app: App) -> None:
    model = ("--model=tests.support.predicting.Predicts", "--data=tests.support.predicting.BringsPredictLoaders")
    assert_one_message(app("predict", *model, "--ckpt_path=x.ckpt"), "the predictions go there")
