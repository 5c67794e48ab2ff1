"""What `test_step` returned of each sample is kept, without Python objects by the sample."""

import csv
import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.run.run_dir import OUTPUTS, SCORES, RunDir
from pipeline.training.results import scores
from pipeline.training.results.scores import Scores


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path / "run"))


def table(run: RunDir) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((run.read(SCORES) or b"").decode())))


def beside(run: RunDir, name: str = OUTPUTS) -> dict[str, Any]:
    return dict(torch.load(io.BytesIO(run.read(name) or b""), weights_only=True))


def test_rows_are_in_ascending_order_and_absent_columns_are_empty(run: RunDir) -> None:
    found = Scores(run, 5)
    found.add(np.array([4, 2]), 2, {"a": torch.tensor([1.5, 2.5]), "hit": torch.tensor([True, False])})
    found.add(np.array([0, 1, 3]), 3, {"a": torch.tensor([1, 2, 3]), "b": torch.tensor([7, 8, 9])})
    found.write()
    assert table(run) == [
        {"index": "0", "a": "1.0", "hit": "", "b": "7"},
        {"index": "1", "a": "2.0", "hit": "", "b": "8"},
        {"index": "2", "a": "2.5", "hit": "False", "b": ""},
        {"index": "3", "a": "3.0", "hit": "", "b": "9"},
        {"index": "4", "a": "1.5", "hit": "True", "b": ""},
    ]
    assert run.read(OUTPUTS) is None


def test_rows_without_indices_are_in_the_order_of_the_loader(run: RunDir) -> None:
    found = Scores(run)
    for number in range(40):
        found.add(None, 3, torch.full((3,), number, dtype=torch.bfloat16))
    found.write("position")
    assert [(row["position"], row["output"]) for row in table(run)][:4] == [
        *(("0", "0.0"), ("1", "0.0"), ("2", "0.0"), ("3", "1.0"))
    ]
    assert len(table(run)) == 120


@pytest.mark.parametrize("output", [None, 0.5, torch.tensor(0.5)])
def test_a_bare_number_of_a_batch_is_nothing_to_keep(run: RunDir, output: Any) -> None:
    found = Scores(run, 2)
    found.add(np.array([0, 1]), 2, output)
    found.write()
    assert table(run) == [{"index": "0"}, {"index": "1"}]
    assert run.read(OUTPUTS) is None


def test_names_images_and_nested_outputs_are_beside_the_table(run: RunDir) -> None:
    found = Scores(run, 3)
    for indices in ([2, 1], [0]):
        at = torch.tensor(indices)
        found.add(
            np.array(indices),
            len(indices),
            {
                "name": [f"sample {index}" for index in indices],
                "image": at.reshape(-1, 1, 1).expand(-1, 2, 2),
                "boxes": [{"box": torch.ones(index)} for index in indices],
                "loss": torch.tensor(0.5),
            },
        )
    found.write()
    assert found.beside == {"name", "image", "boxes", "loss"}
    content = beside(run)
    assert content["index"].tolist() == [2, 1, 0]
    assert content["batch_sizes"] == [2, 1]
    assert content["outputs"]["name"] == ["sample 2", "sample 1", "sample 0"]
    assert content["outputs"]["image"][:, 0, 0].tolist() == [2, 1, 0]
    assert [[len(each["box"]) for each in batch] for batch in content["outputs"]["boxes"]] == [[2, 1], [0]]
    assert [float(loss) for loss in content["outputs"]["loss"]] == [0.5, 0.5]


def test_much_goes_to_several_files_and_another_evaluation_removes_them(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "_FILE_BYTES", 3000)
    found = Scores(run, 10)
    for index in range(10):
        found.add(np.array([index]), 1, {"image": torch.ones(1, 20, 20)})
    found.write()
    names = ["outputs.pt", *(f"outputs-{number:04d}.pt" for number in range(1, 5))]
    assert [beside(run, f"evaluation/{name}")["index"].tolist() for name in names] == [
        *([0, 1], [2, 3], [4, 5], [6, 7], [8, 9])
    ]
    run.write("evaluation/outputs-mine.pt", b"mine")
    Scores(run).clear()
    assert [str(name).rpartition("/")[2] for name in run.fs.ls(f"{run.path}/evaluation", detail=False)] == [
        *("outputs-mine.pt", "scores.csv")
    ]


def test_an_object_that_no_file_can_hold_is_named_once(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    found = Scores(run, 2)
    for index in range(2):
        found.add(np.array([index]), 1, {"path": Path("x"), "note": "kept"})
    found.write()
    assert caplog.text.count("left out of") == 1
    assert "path is a pathlib" in caplog.text
    assert beside(run)["outputs"] == {"note": ["kept", "kept"]}


def test_a_hundred_thousand_samples_take_tens_of_bytes_each(run: RunDir) -> None:
    samples, batch = 100_000, 1_000
    tracemalloc.start()
    found = Scores(run, samples)
    for start in range(0, samples, batch):
        found.add(np.arange(start, start + batch), batch, {"a": torch.ones(batch), "b": torch.ones(batch)})
    kept = tracemalloc.get_traced_memory()[0]
    found.write()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept < 30 * samples
    assert peak < 200 * samples
