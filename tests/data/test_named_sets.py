"""Several validation sets have names; where one set alone can be, several are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.datamodule import DataModule
from pipeline.errors import UserError
from tests.support.commands import Ended
from tests.support.models import _Stream
from tests.support.wished import Uneven

App = Callable[..., Ended]


def test_each_set_is_loaded_whole_and_in_order_by_all_ranks_together() -> None:
    data = DataModule(val={"a": Uneven(9), "b": Uneven(14)}, batch_size=4)
    found = [[int(x) for batch in loader for x in batch[0][:, 0]] for loader in data.val_dataloader()]
    assert found == [list(range(9)), list(range(14))]
    assert data.val_names == ["a", "b"]
    assert list(data.sets("val")) == ["val.a", "val.b"]
    several, one = data.fingerprints(), DataModule(val=Uneven(9)).fingerprints()
    assert several["val"].startswith("a samples sha256:")
    assert "; b samples sha256:" in several["val"]
    assert one["val"] in several["val"]


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ({"val": {}}, "names no validation set"),
        ({"val": {"a/b": Uneven()}}, "data.val has a set 'a/b': a name must be of letters, digits, - and _"),
        ({"val": {"a": _Stream()}}, "data.val.a=_Stream is not map-style"),
        ({"test": {"a": Uneven(), "b": Uneven()}}, "data.test names 2 sets, and must be one"),
        ({"predict": {"a": Uneven()}}, "data.predict names 1 sets, and must be one"),
    ],
)
def test_what_cannot_be_is_refused(sets: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        DataModule(**sets)


def test_a_set_with_too_few_samples_is_named() -> None:
    with pytest.raises(UserError, match=r"data.val.b has 1 samples for 2 processes"):
        DataModule(val={"a": Uneven(9), "b": Uneven(1)}).check(2)


FIT = (
    *("fit", "--data=pipeline.data.DataModule", "--data.train=tests.support.wished.Uneven", "--data.batch_size=16"),
    *("--trainer.enable_model_summary=false", "--trainer.logger=false", "--trainer.max_epochs=1"),
)
SETS = "--data.val={a: {class_path: tests.support.wished.Uneven}, b: {class_path: tests.support.wished.Uneven}}"


def test_a_monitor_without_the_name_of_a_set_is_told_the_names(app: App, tmp_path: Path) -> None:
    ended = app(
        *FIT, SETS, "--model=tests.support.wished.PerSet", "--run_dir", tmp_path, "--checkpoints.monitor=val_loss"
    )
    assert ended.status == 2
    assert "val_loss/a, val_loss/b" in ended.err


def test_a_model_that_does_not_take_several_sets_is_told_so(app: App, tmp_path: Path) -> None:
    ended = app(*FIT, SETS, "--model=tests.support.models.Regression", "--run_dir", tmp_path)
    assert ended.status == 2, ended.text
    assert "dataloader_idx" in ended.err
    assert "Traceback" not in ended.text


def test_a_typo_in_a_set_is_one_message(app: App, tmp_path: Path) -> None:
    ended = app(*FIT, "--data.val={a: {class_path: tests.support.wished.Unevn}}", "--run_dir", tmp_path,
                "--model=tests.support.wished.PerSet")  # fmt: skip
    assert ended.status == 2, ended.text
    assert "Unevn" in ended.err
    assert "Traceback" not in ended.text
    assert len(ended.err.strip().splitlines()) <= 2, ended.err
