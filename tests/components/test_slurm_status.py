"""How a job has ended: by Slurm's word, and by what the job has left."""

import json
from pathlib import Path
from typing import Any

import pytest
from torchx.specs import AppState

from components.slurm_client import SlurmState
from components.slurm_status import JobRecord, described, folder_of, id_of, link, links
from pipeline.process import error_file


def left(folder: Path, **values: Any) -> JobRecord:
    """What a job of two nodes has left."""
    folder.mkdir(exist_ok=True)
    (folder / "app.json").write_text(json.dumps({"role": "train", "replicas": 2, "image": "one:1"}))
    (folder / "state").write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    record = JobRecord.read(folder)
    assert record is not None
    return record


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"start": 3, "status": 0}, "COMPLETED"),
        ({"start": 3, "status": 2, "node": 1}, "FAILED"),
        ({"start": 3, "status": 75, "cancelled": "slurm"}, "CANCELLED"),
        ({"start": 3, "status": ""}, "CANCELLED"),
        ({}, "CANCELLED"),
    ],
)
def test_a_job_that_slurm_has_forgotten_ended_as_its_folder_says(
    values: dict[str, Any], name: str, tmp_path: Path
) -> None:
    assert left(tmp_path, **values).state().name == name


def test_a_failed_job_says_which_node_failed_first_and_why(tmp_path: Path) -> None:
    record = left(tmp_path, start=2, crashes=1, status=1, node=1)
    (tmp_path / "ended").mkdir()
    error_file.write_report(str(tmp_path / "ended/.2-1.json"), 1, "rank 1 on n2: RuntimeError: broken")
    (tmp_path / "nodes").write_text("n1\nn2\n")
    response = described("7", SlurmState("FAILED", exit_status=1), JobRecord.read(tmp_path))
    assert response.msg == "train 1 ended with status 1: rank 1 on n2: RuntimeError: broken"
    assert json.loads(response.structured_error_msg)["message"]["errorCode"] == 1
    assert [one.hostname for one in response.roles_statuses[0].replicas] == ["n1", "n2"]
    assert (response.num_restarts, response.roles[0].image) == (1, "one:1")
    assert record.restarts == 1


@pytest.mark.parametrize(
    ("state", "status", "words"),
    [
        (SlurmState("CANCELLED", exit_status=137), 130, "cancelled"),
        (SlurmState("CANCELLED", "Dependency"), 130, "the job that it waited for has not succeeded"),
        (SlurmState("TIMEOUT", exit_status=143), 143, "its time limit passed before its nodes had saved"),
        (SlurmState("OUT_OF_MEMORY", fields={"MinMemoryNode": "4G"}), 1, "killed for memory: its limit is 4G"),
        (SlurmState("NODE_FAIL"), 1, "one of its nodes failed"),
    ],
)
def test_what_slurm_has_ended_is_said_in_words(state: SlurmState, status: int, words: str, tmp_path: Path) -> None:
    response = described("7", state, left(tmp_path, start=1, status=75))
    assert words in response.msg
    assert json.loads(response.structured_error_msg)["message"]["errorCode"] == status


def test_a_job_whose_nodes_do_not_see_its_folder_says_so(tmp_path: Path) -> None:
    response = described("7", SlurmState("FAILED", exit_status=1), left(tmp_path))
    assert response.msg == f"nothing was started: the nodes must all see {tmp_path}; log_dir names another place"


def test_a_pending_job_says_why_and_a_foreign_job_has_its_nodes() -> None:
    fields = {"JobName": "theirs", "NumNodes": "2-4", "Restarts": "1"}
    response = described("7", SlurmState("PENDING", "Priority", fields=fields), None)
    assert (response.state, response.msg) == (AppState.PENDING, "other jobs have a higher priority (Priority)")
    assert (response.roles[0].name, response.roles[0].num_replicas, response.num_restarts) == ("theirs", 2, 1)


def test_a_job_is_found_by_its_id_and_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for number, folder in (("7", tmp_path / "one"), ("8", tmp_path / "two")):
        left(folder)
        (folder / "id").write_text(number)
        link("by-id", number, folder)
    link("by-name", "fox-train", tmp_path / "two")
    assert folder_of("7") == tmp_path / "one"
    assert folder_of("fox-train") == tmp_path / "two"
    assert (id_of("fox-train"), id_of("nobody"), folder_of("9")) == ("8", None, None)
    assert dict(links()) == {"7": tmp_path / "one", "8": tmp_path / "two"}
    link("by-id", "7", tmp_path / "two")
    assert folder_of("7") == tmp_path / "two", "a cluster that is set up anew counts from 1 again"
