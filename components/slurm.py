"""TorchX's scheduler for Slurm, with what a training needs that outlives its allocations.

TorchX's own (0.7) starts again whatever did not end with 0, a user's mistake too, and counts a preemption; lets a job
end at its time limit; needs accounting for status and log; leaves log files in the working directory; asks for a
heterogeneous job where all nodes are the same. What it knows of Slurm's states, and how it copies a workspace, stays.
"""

import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from torchx.schedulers.api import AppDryRunInfo, DescribeAppResponse, ListAppResponse, Scheduler, Stream
from torchx.schedulers.ids import make_unique
from torchx.specs import AppDef, Role, is_terminal, runopts
from torchx.workspace.dir_workspace import DirWorkspaceMixin

from components import slurm_client
from components.log_lines import require_combined, whole_lines
from components.role import LaunchRequirements, missing_secrets
from components.slurm_script import OPTIONS, JobScript
from components.slurm_status import JobRecord, described, folder_of, id_of, link, links, state_folder
from pipeline.errors import UserError

_log = logging.getLogger(__name__)
_POLL = 0.5
_FRESH = 2.0
"""Seconds for which what Slurm said of a job is taken for true: its controller serves a whole cluster."""
_OF_AN_ALLOCATION = ("SLURM_JOB", "SLURM_STEP", "SLURM_N", "SLURM_TASK", "SLURM_CPU", "SLURM_MEM", "SLURM_GPU")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


class Slurm(DirWorkspaceMixin, Scheduler[Mapping[str, Any]]):
    """The scheduler `slurm`.

    A job is one allocation after the other under one id, until its nodes are done, the user must change something, or
    crashes have used up its role's `max_retries`. The script that decides it is slurm_job.sh.
    """

    def __init__(self, session_name: str) -> None:
        super().__init__("slurm", session_name)
        self._known: dict[str, tuple[float, DescribeAppResponse | None]] = {}
        self._told = False

    def _run_opts(self) -> runopts:
        opts = runopts()
        for name, (kind, default, text) in OPTIONS.items():
            opts.add(name, type_=kind, default=default, help=text)
        return opts

    def build_workspace_and_update_role(self, role: Role, workspace: str, cfg: Mapping[str, Any]) -> None:
        """Copy a folder to `job_dir`, if one is given."""
        image, folder = role.image, cfg.get("job_dir")
        try:
            super().build_workspace_and_update_role(role, workspace, cfg)
        except FileExistsError as error:
            raise UserError(f"job_dir={folder!r} exists: it must be a new folder, which gets the workspace") from error
        role.image = image

    def _validate(self, app: AppDef, scheduler: str, *_: Any) -> None:
        """Leave it to `JobScript`, which reports all problems at once."""

    def _submit_dryrun(self, app: AppDef, cfg: Mapping[str, Any]) -> AppDryRunInfo["SubmittedJob"]:
        """Return what would be submitted. Secrets are in it by name only."""
        if len(app.roles) != 1:
            raise UserError(f"{app.name}: Slurm's nodes all do the same: one role, not {len(app.roles)}")
        (role,) = app.roles
        name = cfg.get("app_id") or app.name
        if not _NAME.fullmatch(name):
            raise UserError(f"app_id={name!r} must be a name of letters, digits, '.', '_' and '-'")
        if absent := missing_secrets(LaunchRequirements.of(role).secrets):
            raise UserError(*absent)
        if (cfg.get("container") or "none") == "none" and not self._told:
            self._told = True
            _log.warning("%s runs in this Python environment, not in image %s: container=none", role.name, role.image)
        logs = Path(cfg.get("log_dir") or state_folder() / "jobs").absolute()
        script = JobScript(name, logs / make_unique(name), role, cfg, slurm_client.has_memory(cfg.get("partition")))
        request = SubmittedJob(script, script.batch(), script.task(), unique=bool(cfg.get("app_id")))
        return AppDryRunInfo(request, str)

    def schedule(self, dryrun_info: AppDryRunInfo["SubmittedJob"]) -> str:
        """Submit a job.

        Returns:
            Its id.

        Raises:
            UserError: Slurm refuses it, or a job of this name exists.
        """
        request: SubmittedJob = dryrun_info.request
        job, folder = request.job, request.job.folder
        if request.unique and (known := id_of(job.name)) is not None:
            raise UserError(
                f"a job {job.name!r} exists already: choose another app_id, or look at it by "
                f"`torchx status slurm://torchx/{known}`"
            )
        folder.mkdir(parents=True)
        (folder / "job.sh").write_text(request.batch)
        (folder / "task.sh").write_text(request.task)
        about = {"role": job.role.name, "replicas": job.role.num_replicas, "image": job.role.image}
        (folder / "app.json").write_text(json.dumps(about))
        # Within an allocation Slurm's variables are about that one, and would contradict the options of this job.
        within = "SLURM_JOB_ID" in os.environ
        environment = {
            name: value for name, value in os.environ.items() if not (within and name.startswith(_OF_AN_ALLOCATION))
        }
        if (job.cfg.get("container") or "none") == "none":
            # Its nodes run this Python, also if nobody has activated its environment.
            environment["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), environment.get("PATH", "")))
        try:
            job_id = slurm_client.submit(str(folder / "job.sh"), job.options, environment)
        except BaseException:
            shutil.rmtree(folder)
            raise
        (folder / "id").write_text(job_id)
        link("by-id", job_id, folder)
        if request.unique:
            link("by-name", job.name, folder)
        return job_id

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """Return the state of a job, by id or name, and why it waits or how it ended; None for an unknown one."""
        at, known = self._known.get(app_id, (0.0, None))
        if known is None or time.monotonic() - at > _FRESH:
            known = self._described(app_id)
            self._known[app_id] = time.monotonic(), known
        return known

    def _described(self, app_id: str) -> DescribeAppResponse | None:
        job_id, folder = id_of(app_id) or app_id, folder_of(app_id)
        state = slurm_client.job(job_id) if job_id.isdecimal() else None
        record = JobRecord.read(folder) if folder else None
        if state is None:
            if record is None:
                return None
            state = record.state()
        return described(app_id, state, record)

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        should_tail: bool = False,
        streams: Stream | None = None,
    ) -> Iterable[str]:
        """Return the lines of one node, over all its starts. They have no times: `since` and `until` have no effect.

        Raises:
            ValueError: One of the two streams is asked for; they are in one file.
        """
        require_combined(streams)
        folder = folder_of(app_id)
        if folder is None or not folder.is_dir():
            raise UserError(f"the log of job {app_id} is not here: it is in the folder of whoever submitted it")
        pieces = _pieces(folder, f"{role_name}-{k}", (lambda: self._ended(app_id)) if should_tail else None)
        lines = (raw.decode(errors="replace") + "\n" for raw in whole_lines(pieces))
        return (line for line in lines if re.search(regex, line)) if regex else lines

    def list(self) -> list[ListAppResponse]:
        """Return the jobs that this user has submitted by this scheduler, the newest first."""
        now = slurm_client.states()
        found = [(job_id, now.get(job_id) or JobRecord.last_state(folder)) for job_id, folder in links()]
        return [ListAppResponse(app_id=job_id, state=state) for job_id, state in found if state is not None]

    def _cancel_existing(self, app_id: str) -> None:
        """Cancel a job. Its nodes save first, with their own grace and not that of Slurm's KillWait."""
        self._known.pop(app_id, None)
        job_id, folder = id_of(app_id) or app_id, folder_of(app_id)
        state = slurm_client.job(job_id)
        if folder is not None and folder.is_dir():
            # For a start that this signal is too early for.
            (folder / "cancelled").touch()
        with suppress(slurm_client.SlurmError):  # it has just ended
            slurm_client.cancel(job_id, "USR2" if folder and state and state.name == "RUNNING" else "")

    def _ended(self, app_id: str) -> bool:
        with suppress(slurm_client.SlurmError):
            known = self.describe(app_id)
            return known is None or is_terminal(known.state)
        return False


@dataclass(frozen=True)
class SubmittedJob:
    """What is submitted.

    Attributes:
        job: What it is made of.
        batch: The batch script.
        task: What each node runs.
        unique: Whether no other job may have its name.
    """

    job: JobScript
    batch: str
    task: str
    unique: bool

    def __str__(self) -> str:
        return f"{self.batch}\n# ---- {self.job.folder}/task.sh\n{self.task}"


def create_scheduler(session_name: str, **_: Any) -> Slurm:
    """Create the scheduler, as TorchX's entry points do."""
    return Slurm(session_name)


def _pieces(folder: Path, node: str, ended: Callable[[], bool] | None) -> Iterator[bytes]:
    """Yield what a node has written, over all its starts; if followed, until the job has ended.

    Args:
        folder: Of the job.
        node: Such as `train-0`.
        ended: Whether the job has; None to yield only what there is.
    """
    start, read, piece = 1, 0, b"\n"
    while True:
        last = ended is None or ended()
        newer = max((int(log.suffixes[-2][1:]) for log in folder.glob(f"{node}.*.log")), default=0)
        with suppress(FileNotFoundError), (folder / f"{node}.{start}.log").open("rb") as log:
            log.seek(read)
            while more := log.read(1 << 16):
                read, piece = read + len(more), more
                yield more
        if newer > start:
            if not piece.endswith(b"\n"):
                yield b"\n"
            start, read, piece = start + 1, 0, b"\n"
        elif last:
            return
        else:
            time.sleep(_POLL)
