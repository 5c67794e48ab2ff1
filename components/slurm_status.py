"""What a job of Slurm is, and how it has ended: what Slurm says, and what the job has left in its folder.

Slurm forgets a job minutes after its end unless it keeps accounts; the folder does not.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torchx.schedulers.api import DescribeAppResponse
from torchx.specs import AppState, ReplicaStatus, Role, RoleStatus, is_terminal

from components.slurm_client import SlurmState, waiting_for
from pipeline.errors import CRASH, DONE, INTERRUPTED
from pipeline.process import error_file


@dataclass(frozen=True)
class JobRecord:
    """What a job has left in its folder.

    Attributes:
        folder: Its folder.
        role: What its nodes are called.
        replicas: How many there are at most.
        image: What was asked for.
        values: What its script has noted: `start`, `crashes`, `status`, `node`, `cancelled`.
        nodes: The names of its nodes, of the last allocation.
    """

    folder: Path
    role: str
    replicas: int
    image: str
    values: Mapping[str, str]
    nodes: list[str]

    @classmethod
    def read(cls, folder: Path) -> "JobRecord | None":
        """Read a folder; None if it is gone."""
        try:
            about = json.loads((folder / "app.json").read_text())
        except (OSError, ValueError):
            return None
        values = dict(line.partition("=")[::2] for line in _lines_of(folder / "state"))
        nodes = _lines_of(folder / "nodes")
        return cls(folder, about["role"], about["replicas"], about["image"], values, nodes)

    @property
    def status(self) -> int | None:
        """The exit status, once its script has decided on one for good."""
        status = self.values.get("status", "")
        return int(status) if status.isdecimal() else None

    @property
    def restarts(self) -> int:
        """How often its nodes were started again."""
        return max(0, int(self.values.get("start") or 0) - 1)

    @property
    def cancelled(self) -> bool:
        """Whether somebody has cancelled it."""
        return bool(self.values.get("cancelled")) or (self.folder / "cancelled").exists()

    @classmethod
    def last_state(cls, folder: Path) -> AppState | None:
        """Return the state of a job that Slurm does not remember; None if its folder is gone."""
        record = cls.read(folder)
        return record.state().app_state if record else None

    def state(self) -> SlurmState:
        """Return how a job has ended that Slurm does not remember."""
        if self.cancelled or self.status is None:
            return SlurmState("CANCELLED")
        return SlurmState("COMPLETED" if self.status == DONE else "FAILED", exit_status=self.status)

    def why(self) -> str:
        """Return a sentence on how its nodes have ended."""
        node, start = self.values.get("node", ""), self.values.get("start", "")
        who = f"{self.role} {node}" if node else self.role
        report = error_file.read_report(str(self.folder / "ended" / f".{start}-{node}.json"))
        return f"{who} ended with status {self.status}" + (f": {report.message}" if report and report.message else "")


def described(app_id: str, state: SlurmState, record: JobRecord | None) -> DescribeAppResponse:
    """Return the state of a job in TorchX's form.

    Args:
        app_id: Its id or name.
        state: What Slurm says of it.
        record: What it has left; None for a job that was not submitted here.
    """
    response = DescribeAppResponse(app_id=app_id, state=state.app_state)
    fields = state.fields or {}
    name = record.role if record else fields.get("JobName", "job")
    count = record.replicas if record else int(fields.get("NumNodes", "1").partition("-")[0])
    hosts = [*(record.nodes if record else []), *[""] * count]
    response.num_restarts = record.restarts if record else int(fields.get("Restarts", 0))
    response.roles.append(Role(name, image=record.image if record else "", num_replicas=count))
    replicas = [ReplicaStatus(replica, state.app_state, name, hostname=hosts[replica]) for replica in range(count)]
    response.roles_statuses.append(RoleStatus(name, replicas))
    if state.app_state == AppState.PENDING and state.reason:
        response.msg = waiting_for(state.reason)
    elif is_terminal(state.app_state) and state.app_state != AppState.SUCCEEDED:
        status, response.msg = _end_of(state, record)
        # In the form of TorchX's local schedulers, from which `components.launch` reads the status.
        response.structured_error_msg = json.dumps(error_file.content(status, response.msg))
    return response


def _end_of(state: SlurmState, record: JobRecord | None) -> tuple[int, str]:
    """Return the exit status of a job that has not succeeded, and a sentence."""
    fields = state.fields or {}
    if state.name == "CANCELLED" or (record is not None and record.cancelled):
        never = state.reason in ("Dependency", "DependencyNeverSatisfied")
        return INTERRUPTED, "cancelled: the job that it waited for has not succeeded" if never else "cancelled"
    if state.name == "FAILED" and record is not None and record.status is not None:
        return record.status, record.why()
    if state.name == "FAILED" and record is not None and not record.values:
        return CRASH, f"nothing was started: the nodes must all see {record.folder}; log_dir names another place"
    words = {
        "TIMEOUT": "its time limit passed before its nodes had saved: lower --grace, or give it more time",
        "OUT_OF_MEMORY": f"killed for memory: its limit is {fields.get('MinMemoryNode', 'in --memory')}",
        "NODE_FAIL": "one of its nodes failed, and it may not be requeued here",
    }
    return state.exit_status or CRASH, words.get(state.name, f"{state.name.lower()} with status {state.exit_status}")


def state_folder() -> Path:
    """Return where the user's jobs are noted, on this machine's view of the home."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base, "pipeline", "slurm")


def link(kind: str, name: str, folder: Path) -> None:
    """Note the folder of a job; ids begin again where a cluster is set up anew."""
    note = state_folder() / kind / name
    note.parent.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    note.symlink_to(folder)


def links() -> list[tuple[str, Path]]:
    """Return the ids of the jobs that are noted with their folders, the newest first."""
    notes = sorted(state_folder().glob("by-id/*"), key=lambda note: note.lstat().st_mtime, reverse=True)
    return [(note.name, note.resolve()) for note in notes]


def folder_of(app_id: str) -> Path | None:
    """Return the folder of a job, by its id or name; None if it was not submitted here."""
    for kind in ("by-id", "by-name"):
        note = state_folder() / kind / app_id
        if note.is_symlink():
            return note.resolve()
    return None


def id_of(name: str) -> str | None:
    """Return the id of the job of a name; None where there is none of this user's."""
    with suppress(OSError):
        return (state_folder() / "by-name" / name / "id").read_text()
    return None


def _lines_of(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
