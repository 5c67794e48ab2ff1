"""An exported file arrives whole on every storage, and takes the place of no other one in silence."""

import os
from pathlib import Path

import pytest

from pipeline.commands.export.destination import Destination
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "made" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(b"model" * 1000)
    return path


def test_a_file_is_put_compared_and_replaced(storage: str, file: Path) -> None:
    run = RunDir(storage)
    where = Destination(f"{storage}/exports/model.onnx", run)
    assert where.differs(file) is None
    where.put(file)
    assert where.differs(file) is False
    assert run.read("exports/model.onnx") == file.read_bytes()
    file.write_bytes(b"other" * 1000)
    assert where.differs(file) is True
    with pytest.raises(UserError, match="--overwrite true"):
        where.refuse_another(file)
    where.put(file)
    assert where.differs(file) is False
    assert run.names("exports") == ["model.onnx"]


@pytest.mark.parametrize(
    "name",
    ["checkpoints/step-00000001.ckpt", "attempts/x", "lease.json", "run.json", "test.yaml", "logs/x", "report.html"],
)
def test_no_file_of_the_run_itself_is_replaced(storage: str, name: str) -> None:
    with pytest.raises(UserError, match="one of the run's own files"):
        Destination(f"{storage}/{name}", RunDir(storage))


def test_a_link_does_not_hide_a_file_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    os.symlink(tmp_path / "run", tmp_path / "link")
    with pytest.raises(UserError, match="one of the run's own files"):
        Destination(str(tmp_path / "link" / "checkpoints" / "x"), RunDir(str(tmp_path / "run")))


def test_what_cannot_be_written_says_so(tmp_path: Path, file: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    where = Destination(str(tmp_path / "taken" / "x.onnx"), RunDir(str(tmp_path / "run")))
    with pytest.raises(UserError, match=r"output='.*/taken/x.onnx' cannot be (written|read)"):
        where.put(file)


def test_a_bucket_that_is_not_there_says_so(s3: str, file: Path, tmp_path: Path) -> None:
    where = Destination("s3://no-such-bucket-of-exports/x.onnx", RunDir(str(tmp_path / "run")))
    with pytest.raises(UserError, match="cannot be"):
        where.put(file)
