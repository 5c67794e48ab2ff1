"""Numbers and strings of a checkpoint are read without torch, without its tensors, and without running its code."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from pipeline.checkpoint.plain_values import plain_values
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir
from pipeline.training.state.run_state import read_run_state
from tests.support.commands import without
from tests.support.runs import FIT


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


class Wrapped(dict[str, int]):
    pass


def test_the_state_of_a_real_run_is_what_torch_reads(app: Any, storage: str) -> None:
    assert app(*FIT, "--run_dir", storage).status == 0
    run = RunDir(storage)
    url = run.url_of(RunDir.checkpoint(max(run.steps()["ckpt"])))
    theirs = read_run_state(url)
    assert theirs is not None
    found = plain_values(url)["pipeline"]
    assert found["ledger"] == theirs.ledger
    assert found["epoch"] == theirs.epoch
    assert found["facts"] == theirs.facts


def test_tensors_and_objects_have_no_content_and_run_nothing(tmp_path: Path) -> None:
    held = {"number": 3, "tensor": torch.ones(5), "bomb": Bomb(str(tmp_path / "touched")), "own": Wrapped(a=1)}
    torch.save({**held, "list": [1, {"x": "y"}]}, tmp_path / "x.ckpt")
    found = plain_values(str(tmp_path / "x.ckpt"))
    assert found["number"] == 3
    assert found["list"] == [1, {"x": "y"}]
    assert not hasattr(found["tensor"], "shape")
    assert not (tmp_path / "touched").exists()


class Counted(io.FileIO):
    """A file that counts what is read of it."""

    total = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        Counted.total += len(data)
        return data


def test_little_of_a_large_checkpoint_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weights": torch.zeros(4_000_000), "step": 7}, tmp_path / "x.ckpt")
    monkeypatch.setattr(LocalFileSystem, "open", lambda _, path, mode, **options: Counted(path))
    assert plain_values(str(tmp_path / "x.ckpt"))["step"] == 7
    assert 0 < Counted.total < 200_000


@pytest.mark.parametrize(
    "content", [b"", b"no zip", pickle.dumps({"a": 1}), b"PK\x03\x04 torn"], ids=["empty", "text", "pickle", "torn"]
)
def test_what_is_no_checkpoint_is_the_users_to_change(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        plain_values(str(tmp_path / "x.ckpt"))
    with pytest.raises(UserError, match="cannot be read"):
        plain_values(str(tmp_path / "absent.ckpt"))


@pytest.mark.parametrize(
    "pickled", [b"", b"\x80\x02.", b"garbage", pickle.dumps([1], 2), b"\x80\x02cos\nsystem\nq\x00."]
)
def test_a_zip_of_something_else_is_none_either(tmp_path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("x/data.pkl", pickled)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        plain_values(str(tmp_path / "x.ckpt"))


def test_torch_is_not_imported(tmp_path: Path) -> None:
    torch.save({"step": 7}, tmp_path / "x.ckpt")
    without(
        ("torch", "numpy"),
        "from pipeline.checkpoint.plain_values import plain_values\n"
        f"assert plain_values({str(tmp_path / 'x.ckpt')!r}) == {{'step': 7}}",
    )
