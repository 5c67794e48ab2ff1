"""The samples at both ends of the scores are shown, where the dataset can, and its errors end nothing."""

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

from pipeline.run.run_dir import PICTURES, RunDir
from pipeline.training.results.pictures import LIST, ScoreColumn, clear_pictures, write_pictures
from tests.support.commands import QUICK, Ended

App = Callable[..., Ended]


class Shown:
    """A dataset whose pictures have the shade of their index."""

    def __init__(self, make: Callable[[int], Any] = lambda index: np.full((4, 6), index, np.uint8), size: int = 100):
        self.make, self.size = make, size

    def __len__(self) -> int:
        return self.size

    def picture(self, index: int) -> Any:
        return self.make(index)


def column(*values: float) -> ScoreColumn:
    return ScoreColumn("loss", np.arange(len(values)), np.array(values))


def listed(run: RunDir) -> dict[str, Any]:
    found = run.read_json(LIST)
    assert found
    return found


def image(run: RunDir, name: str) -> Image.Image:
    return Image.open(io.BytesIO(run.read(f"{PICTURES}/{name}") or b""))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path / "run"))


def test_the_eight_of_each_end_are_written_the_most_extreme_first(storage: str) -> None:
    run = RunDir(storage)
    write_pictures(run, Shown(), column(*(float((7 * at) % 100) for at in range(100)), np.nan, np.inf))
    found = listed(run)
    assert found["column"] == "loss"
    assert [each["score"] for each in found["lowest"]] == list(range(8))
    assert [each["score"] for each in found["highest"]] == list(range(99, 91, -1))
    for each in (*found["lowest"], *found["highest"]):
        picture = image(run, each["file"])
        assert (picture.size, picture.getpixel((0, 0))) == ((6, 4), each["index"])
        assert (7 * each["index"]) % 100 == each["score"]


@pytest.mark.parametrize(("samples", "lowest", "highest"), [(0, 0, 0), (1, 1, 0), (3, 2, 1), (16, 8, 8)])
def test_no_sample_is_at_both_ends(run: RunDir, samples: int, lowest: int, highest: int) -> None:
    write_pictures(run, Shown(), column(*map(float, range(samples))))
    if samples:
        assert (len(listed(run)["lowest"]), len(listed(run)["highest"])) == (lowest, highest)
    else:
        assert run.read_json(LIST) is None


@pytest.mark.parametrize(
    ("picture", "mode", "pixel"),
    [
        (np.full((4, 4), 7, np.uint8), "L", 7),
        (np.full((4, 4, 3), 7, np.uint8), "RGB", (7, 7, 7)),
        (torch.full((4, 4), 0.5), "L", 128),
        (torch.full((1, 5, 5), 2.0), "L", 255),
        (torch.full((3, 5, 5), -1.0), "RGB", (0, 0, 0)),
        (torch.full((4, 4, 1), 1.0, requires_grad=True), "L", 255),
        (torch.tensor([[float("nan")]]), "L", 0),
        (Image.new("CMYK", (4, 4)), "RGB", (255, 255, 255)),
    ],
    ids=["grey", "colour", "floats", "channel", "channels", "last", "nan", "cmyk"],
)
def test_a_picture_may_have_many_forms(run: RunDir, picture: Any, mode: str, pixel: Any) -> None:
    write_pictures(run, Shown(lambda _: picture), column(1.0))
    found = image(run, "lowest-1.png")
    assert (found.mode, found.getpixel((0, 0))) == (mode, pixel)


def test_a_large_picture_is_thinned_out(run: RunDir) -> None:
    write_pictures(run, Shown(lambda _: np.zeros((500, 1000), np.uint8)), column(1.0))
    assert image(run, "lowest-1.png").size == (250, 125)


def broken(index: int) -> Any:
    raise KeyError("no such picture")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (broken, "KeyError"),
        (lambda _: "text", "a picture must be"),
        (lambda _: np.zeros((2, 2, 7), np.uint8), "(2, 2, 7)"),
        (lambda _: np.zeros((0, 4), np.uint8), "(0, 4)"),
        (lambda _: None, "a picture must be"),
    ],
)
def test_what_goes_wrong_in_a_picture_is_one_warning(
    run: RunDir, caplog: pytest.LogCaptureFixture, make: Callable[[int], Any], words: str
) -> None:
    with caplog.at_level(logging.WARNING, "pipeline"):
        write_pictures(run, Shown(make), column(1.0, 2.0, 3.0))
    (said,) = caplog.messages
    assert "no pictures of test samples" in said
    assert words in said
    assert run.names(PICTURES) == []


def test_a_subset_and_a_chain_of_datasets_show_what_they_hold(run: RunDir) -> None:
    parts: Any = ConcatDataset([Shown(size=10), Shown(lambda at: np.full((1, 1), 100 + at, np.uint8), size=5)])  # type: ignore[list-item]
    write_pictures(run, Subset(parts, [3, 12]), column(1.0, 2.0))
    assert image(run, "lowest-1.png").getpixel((0, 0)) == 3
    assert image(run, "highest-1.png").getpixel((0, 0)) == 102


def test_a_dataset_that_offers_none_has_none(run: RunDir) -> None:
    write_pictures(run, range(2), column(1.0, 2.0))
    assert run.names(PICTURES) == []


def test_an_evaluation_shows_the_digits_and_clears_what_an_earlier_one_left(app: App, tmp_path: Path) -> None:
    assert app("fit", "--config", "pipeline/configs/digits.yaml", *QUICK, "--run_dir", tmp_path).status == 0
    left = tmp_path / PICTURES / "lowest-99.png"
    left.parent.mkdir(parents=True)
    left.touch()
    (tmp_path / PICTURES / "notes.txt").touch()
    assert app("test", "--run_dir", tmp_path).status == 0
    found = json.loads((tmp_path / LIST).read_text())
    assert found["column"] == "reconstruction_error"
    assert len(found["lowest"]) == len(found["highest"]) == 8
    assert found["lowest"][0]["score"] < found["highest"][0]["score"]
    assert image(RunDir(str(tmp_path)), "lowest-1.png").size == (8, 8)
    assert not left.exists()
    assert (tmp_path / PICTURES / "notes.txt").exists(), "it is the user's"


def test_clearing_removes_the_list_first(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(run, Shown(), column(1.0, 2.0))
    removed: list[str] = []
    monkeypatch.setattr(run, "remove", removed.append)
    clear_pictures(run)
    assert removed[0] == LIST
    assert len(removed) == 3
