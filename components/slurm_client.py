"""Slurm's commands: what they say of a job, and what they refuse, as a sentence that names our option.

Neither `--json`, which many clusters' Slurm is built without, nor accounting is needed.
"""

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchx.schedulers.slurm_scheduler import SLURM_STATES
from torchx.specs import AppState

from pipeline.errors import UserError

_SECONDS = 60
"""How long a command may take: a controller under load answers late."""
_FIELD = re.compile(r"(?:^|\s)([A-Z]\w*)=(\S*)")
_UNKNOWN_JOB = "Invalid job id specified"
_STATES: Mapping[str, AppState] = {
    **SLURM_STATES,
    # A job that completes may be about to be requeued.
    **dict.fromkeys(("COMPLETING", "SIGNALING", "STAGE_OUT", "STOPPED"), AppState.RUNNING),
    **dict.fromkeys(("CONFIGURING", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"), AppState.PENDING),
}
_REASONS = {
    "BadConstraints": "no node has what constraint asks for",
    "BeginTime": "its start time has not come; a requeued job waits for two minutes (cred_expire of Slurm's AuthInfo)",
    "Dependency": "it waits for another job to succeed",
    "DependencyNeverSatisfied": "the job that it waits for has failed",
    "JobHeldAdmin": "an administrator holds it",
    "JobHeldUser": "its user holds it: scontrol release",
    "Licenses": "it waits for a license",
    "NodeDown": "a node that it needs is down",
    "PartitionConfig": "the partition has fewer or smaller nodes than --nodes and --cpu ask for",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition accepts no jobs now",
    "PartitionNodeLimit": "the partition has fewer nodes than --nodes asks for, or gives a job fewer",
    "PartitionTimeLimit": "time is above the limit of the partition",
    "Priority": "other jobs have a higher priority",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "Reservation": "it waits for its reservation",
    "Resources": "all nodes that it could use are busy",
}
_LIMITS = (("QOS", "the limit {} of its QOS is reached"), ("Assoc", "the limit {} of its account is reached"))
_REFUSED = (
    # A part of sbatch's message, and the options of ours that it is about.
    ("account or account/partition", "account, partition"),
    ("partition", "partition"),
    ("qos", "qos"),
    ("time limit", "time"),
    ("--time", "time"),
    ("license", "sbatch_args"),
    ("feature", "constraint"),
    ("reservation", "reservation"),
    ("generic resource", "gres, --gpu"),
    ("gres", "gres, --gpu"),
    ("node name", "nodelist, exclude"),
    ("Node count", "--nodes"),
    ("Memory", "--memory"),
    ("CPU count", "--cpu"),
    ("dependency", "dependency"),
    ("mail", "mail_type"),
    ("option", "sbatch_args"),
    ("node configuration", "--nodes, --cpu, --memory, --gpu, constraint, nodelist"),
    ("argument", "sbatch_args"),
)
_AWAY = re.compile(
    r"[Uu]nable to contact slurm|Connection refused|timed out|Zero Bytes|temporarily|[Mm]unge|authentication"
)


class SlurmError(Exception):
    """A command of Slurm has failed or made no sense, most often because its controller is away: no user's mistake."""


@dataclass(frozen=True)
class SlurmState:
    """What Slurm says of a job.

    Attributes:
        name: Slurm's word, such as `PENDING`.
        reason: Slurm's word for why it waits or has failed; empty for none.
        exit_status: As a shell has it; None before the job has ended.
        fields: More of what `scontrol` tells, by its names.
    """

    name: str
    reason: str = ""
    exit_status: int | None = None
    fields: Mapping[str, str] | None = None

    @property
    def app_state(self) -> AppState:
        """The state as TorchX has it."""
        return _STATES.get(self.name, AppState.UNKNOWN)


def submit(script: str, options: Sequence[str], environment: Mapping[str, str]) -> str:
    """Submit a batch script.

    Args:
        script: Its path.
        options: Of sbatch: those of the script itself yield to variables of the user's, such as SBATCH_PARTITION.
        environment: Of the job.

    Returns:
        The id of the job.

    Raises:
        UserError: Slurm refuses it.
        SlurmError: The controller does not answer.
    """
    try:
        said = _run(("sbatch", "--parsable", *options, script), environment)
    except SlurmError as error:
        if _AWAY.search(str(error)):
            raise
        said = str(error)
        about = next((names for words, names in _REFUSED if words.lower() in said.lower()), "")
        raise UserError(f"Slurm refuses the job{f' ({about})' if about else ''}: {said}") from error
    return said.strip().partition(";")[0]


def job(job_id: str) -> SlurmState | None:
    """Return what the controller says of a job, or accounting where there is one; None if neither knows it."""
    try:
        return parsed_job(_run(("scontrol", "show", "job", "--oneliner", job_id)))
    except SlurmError as error:
        if _UNKNOWN_JOB not in str(error):
            raise
    try:
        return parsed_account(_run(("sacct", "-X", "-n", "-P", "-j", job_id, "-o", "State,ExitCode")))
    except SlurmError:
        return None


def states() -> dict[str, AppState]:
    """Return the state of each job of this user that the controller remembers, by its id."""
    lines = _run(("squeue", "--me", "--noheader", "--states=all", "--format=%i %T")).splitlines()
    found = [line.split() for line in lines]
    return {words[0]: SlurmState(words[1]).app_state for words in found if len(words) == 2}


def has_memory(partition: str | None) -> bool:
    """Return whether memory can be asked for in a partition: some clusters have not told Slurm how much there is."""
    which = (f"--partition={partition}",) if partition else ()
    try:
        lines = _run(("sinfo", "--noheader", "--noconvert", "--format=%P %m", *which)).splitlines()
    except (UserError, SlurmError):
        return True
    said = [line.split() for line in lines]
    sizes = [(words[0], words[1].rstrip("+")) for words in said if len(words) == 2]
    found = [int(size) for name, size in sizes if size.isdecimal() and (partition or name.endswith("*"))]
    return not found or max(found) > 1


def cancel(job_id: str, signal: str = "") -> None:
    """Cancel a job, or signal its batch script alone."""
    _run(("scancel", *(("--batch", f"--signal={signal}") if signal else ()), job_id))


def parsed_job(text: str) -> SlurmState:
    """Parse a job as `scontrol show job --oneliner` prints it.

    Raises:
        SlurmError: It says nothing of a job's state.
    """
    # A comment or a path may hold anything; what counts comes first.
    fields: dict[str, str] = {}
    for name, value in _FIELD.findall(text):
        fields.setdefault(name, value)
    if "JobState" not in fields:
        raise SlurmError(f"scontrol answered {text[:200]!r}, in which there is no JobState")
    name, reason = fields["JobState"], fields.get("Reason", "None")
    ended = name not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED")
    status = _status(fields.get("ExitCode", "")) if ended else None
    return SlurmState(name, "" if reason == "None" else reason, status, fields)


def parsed_account(text: str) -> SlurmState | None:
    """Parse what `sacct -X -n -P -o State,ExitCode` prints; the last line is the job's last start."""
    found = [line for line in text.splitlines() if line.strip()]
    if not found:
        return None
    state, _, code = found[-1].partition("|")
    return SlurmState(state.split()[0], exit_status=_status(code))  # CANCELLED by 1000


def waiting_for(reason: str) -> str:
    """Return in words why a job is pending; Slurm's own word where there are none."""
    word = reason.partition(",")[0]
    for prefix, words in _LIMITS:
        if word.startswith(prefix):
            return f"{words.format(word)} ({word})"
    return f"{_REASONS[word]} ({reason})" if word in _REASONS else reason


def _status(code: str) -> int | None:
    """Return an exit status from Slurm's `status:signal`."""
    status, _, signal = code.partition(":")
    if not status.isdecimal() or not signal.isdecimal():
        return None
    return 128 + int(signal) if int(signal) else int(status)


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    try:
        ended = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise UserError(f"no {command[0]} here: run this where Slurm's commands are, such as a login node") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]}: no answer within {_SECONDS} s") from error
    if ended.returncode != 0:
        said = re.sub(rf"^{command[0]}: (?:error: )?", "", ended.stderr.strip(), flags=re.MULTILINE)
        raise SlurmError("; ".join(said.splitlines()) or f"{command[0]} ended with status {ended.returncode}")
    return ended.stdout
