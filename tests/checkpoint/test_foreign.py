"""Whatever file a user names as a checkpoint or as weights is loaded, or is one sentence that says what it is."""

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.checkpoint.weight_files import locate_weights, read_weights, require_checkpoint
from pipeline.errors import UserError
from tests.support.commands import Ended, assert_one_message
from tests.support.models import Regression, Rows
from tests.support.runs import FIT

App = Callable[..., Ended]
DIRTY: list[str] = []
"""What unpickling a file has executed."""


class Config:
    """What a training script keeps beside the weights; unpickling it leaves a trace."""

    def __init__(self) -> None:
        self.depth = 3

    def __setstate__(self, state: Any) -> None:
        DIRTY.append("executed")


def zipped(path: Path) -> None:
    np.savez(path, weights=np.ones(3))
    path.with_suffix(".pt.npz").rename(path)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"layers.0.weight": [1.0]}))


def cut(path: Path) -> None:
    torch.save({"x": torch.ones(10_000)}, path)
    path.write_bytes(path.read_bytes()[:20_000])


def script(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: path.write_bytes(b""), "is empty"),
    "a web page": (lambda path: path.write_text("\n<!DOCTYPE html><html>404</html>"), "a web page"),
    "a pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid x"), "git lfs pull"),
    "compressed": (lambda path: path.write_bytes(gzip.compress(b"x")), "unpack it first"),
    "some text": (lambda path: path.write_text("hello"), "is damaged, or no file that torch.save wrote"),
    "an HDF5 file": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "as Keras writes"),
    "a truncated one": (cut, "is truncated or damaged (20000 bytes)"),
    "a pickle": (pickled, "is a pickle that torch.save did not write"),
    "numpy's archive": (zipped, "a zip archive that torch.save did not write: it holds weights.npy"),
    "TorchScript": (script, "is a TorchScript archive"),
    "a model": (lambda path: torch.save(nn.Linear(2, 2), path), "torch.nn.modules.linear.Linear"),
    "a configuration beside": (
        lambda path: torch.save({"state_dict": Regression().state_dict(), "config": Config()}, path),
        "holds objects of tests.checkpoint.test_foreign.Config, and loading those would execute pickled code. If you "
        "trust whoever wrote the file, add --weights_only false",
    ),
    "the same in the older form": (
        lambda path: torch.save({"config": Config()}, path, _use_new_zipfile_serialization=False),
        "objects of tests.checkpoint.test_foreign.Config",
    ),
    "a tensor": (lambda path: torch.save(torch.ones(3), path), "an object of torch.Tensor"),
    "a list": (lambda path: torch.save([torch.ones(3)], path), "an object of list"),
    "an optimizer": (
        lambda path: torch.save({"state": {}, "param_groups": []}, path),
        "a mapping with the keys state, param_groups",
    ),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "shards of FSDP": (lambda path: (path / ".metadata").mkdir(parents=True), "a sharded checkpoint of torch.distrib"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_of_another_kind_is_one_sentence(tmp_path: Path, kind: str) -> None:
    write, words = OTHERS[kind]
    url = str(tmp_path / "x.pt")
    write(tmp_path / "x.pt")
    for name, load in (("ckpt_path", lambda: require_checkpoint(url, trains=True)), ("weights", lambda: read(url))):
        with pytest.raises(UserError) as raised:
            load()
        (problem,) = raised.value.problems
        assert problem.startswith(f"{name}={url!r} ")
        assert words in problem
        assert "\n" not in problem
    assert not DIRTY


def read(url: str) -> None:
    with read_weights(*locate_weights(url)):
        pass


@pytest.mark.parametrize("flag", ["--ckpt_path", "--weights"])
def test_it_is_said_before_anything_is_built(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    def built(*_: object) -> None:
        raise AssertionError("a dataset was read for a command that cannot run")

    monkeypatch.setattr(Rows, "__init__", built)
    OTHERS["a truncated one"][0](tmp_path / "x.pt")
    ended = app(*FIT, flag, tmp_path / "x.pt", "--run_dir", tmp_path / "run")
    assert_one_message(ended, f"{flag[2:]}={str(tmp_path / 'x.pt')!r} is truncated or damaged")


def test_pickled_code_is_executed_where_the_user_says_so(app: App, tmp_path: Path, theirs: Path) -> None:
    loaded = {**torch.load(theirs / "theirs.ckpt", weights_only=True), "config": Config()}
    torch.save(loaded, tmp_path / "x.ckpt")
    assert app(*FIT, "--ckpt_path", tmp_path / "x.ckpt", "--run_dir", tmp_path / "no").status == 2
    own = ("--model=tests.support.models.Regression", "--data=tests.support.models.Own")
    trust = ("--ckpt_path", tmp_path / "x.ckpt", "--weights_only", "false")
    try:
        ended = app("fit", *own, *trust, "--run_dir", tmp_path / "fit", "--trainer.max_epochs=3")
        assert ended.status == 0, ended.err
        assert DIRTY
        ended = app("validate", *own, *trust)
        assert ended.status == 0, ended.err
        ended = app(*FIT, "--weights", tmp_path / "x.ckpt", "--weights_only=false", "--run_dir", tmp_path / "start")
        assert ended.status == 0, ended.err
        torch.save(Regression(), tmp_path / "model.pt")
        ended = app(*FIT, "--weights", tmp_path / "model.pt", "--weights_only=false", "--run_dir", tmp_path / "model")
        assert ended.status == 0, ended.err
    finally:
        DIRTY.clear()


def test_a_class_that_is_not_installed_is_named(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"config": Config()}, tmp_path / "x.pt")
    monkeypatch.setattr("tests.checkpoint.test_foreign.Config", None, raising=False)
    monkeypatch.delattr("tests.checkpoint.test_foreign.Config")
    flags = ("--weights", tmp_path / "x.pt", "--weights_only=false")
    ended = app(*FIT, *flags, "--run_dir", tmp_path / "run")
    assert_one_message(ended, "needs what cannot be imported here: AttributeError")
