"""What the processes of one agent have started is known to those that it starts after them."""

from pathlib import Path

from pipeline.process.started_runs import FOLDER, remember, remembers


def test_a_run_is_remembered_within_the_folder_of_its_agent(tmp_path: Path) -> None:
    here, other = {FOLDER: str(tmp_path)}, {FOLDER: str(tmp_path / "none")}
    assert not remembers("s3://b/run", here)
    remember("s3://b/run", here)
    assert remembers("s3://b/run", here)
    assert not remembers("s3://b/run-2", here)
    remember("s3://b/run", other)
    assert not remembers("s3://b/run", other)


def test_without_an_agent_nothing_is_remembered() -> None:
    remember("s3://b/run", {})
    assert not remembers("s3://b/run", {})
