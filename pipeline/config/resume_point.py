"""Which checkpoint of its run a subcommand loads; rank 0 decides for all.

A run directory that holds checkpoints is never started from scratch without a word, and a committed step is never
written again.
"""

import logging
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from pipeline.checkpoint.commit import CommitRecord, newest
from pipeline.checkpoint.foreign import digest
from pipeline.checkpoint.load import newest_verified, select_verified
from pipeline.checkpoint.weight_files import locate_weights
from pipeline.config import saved_config
from pipeline.config.memory_state import MemoryState, RunMemory
from pipeline.errors import StorageAway, UserError
from pipeline.process import started_runs
from pipeline.process.patience import patience
from pipeline.process.topology import Topology
from pipeline.run.attempts import finished_at, reported_commits
from pipeline.run.goodput_report import MEMORY, STORAGE
from pipeline.run.run_dir import CHECKPOINTS, RunDir
from pipeline.training.memory_checkpoints import Uncommitted
from pipeline.training.state.run_end import why_over
from pipeline.training.state.run_state import RunState, read_run_state
from pipeline.training.state.weights import InitialWeights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """A decision, in JSON's types, so that every rank gets it.

    Attributes:
        url: The checkpoint to load; None: there is none.
        own: Its commit record, as a mapping, where the run itself committed it.
        path: On rank 0's node, the local file of its bytes, which match the record; None where they were not compared.
        finished: Why training is over, and nothing is asked that would continue it; "" where it is not.
        memory: The state that nodes hold in memory, the fields of `MemoryState`, where training resumes from that.
        committed: The newest step that the run has committed; None: none.
        weights: What a new run starts from, the fields of `InitialWeights`; None: from the model's own.
    """

    url: str | None = None
    own: dict[str, Any] | None = None
    path: str | None = None
    finished: str = ""
    weights: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    committed: int | None = None

    @cached_property
    def record(self) -> CommitRecord | None:
        """The commit record of a checkpoint of the run's own; None for one that the user named."""
        return None if self.own is None else CommitRecord.of_dict(self.own)

    @property
    def step(self) -> int | None:
        """Its optimizer step, None where only the user knows it."""
        return None if self.record is None else self.record.step

    @property
    def sha256(self) -> str:
        """The digest of its bytes, `sha256:<hex>`, see `digest`."""
        return digest(str(self.url)) if self.record is None else self.record.sha256

    @property
    def source(self) -> str | None:
        """From where training resumes, one of `goodput_report.SOURCES`; None: it begins."""
        return None if self.url is None else MEMORY if self.memory else STORAGE

    @property
    def ckpt_path(self) -> str | None:
        """What the trainer is to load."""
        return self.path if self.memory else self.url

    @property
    def uncommitted(self) -> Uncommitted | None:
        """The state that training resumes from, where it is in memory alone."""
        if self.memory is None or self.record is None or self.committed == self.step:
            return None
        return Uncommitted(self.record, lambda: torch.load(str(self.path), map_location="cpu", weights_only=True))

    def run_state(self, weights_only: bool = True) -> RunState | None:
        """Read what this project added to it, on rank 0 from the verified bytes; None if another program wrote it.

        Args:
            weights_only: Whether to refuse what would execute pickled code.

        Raises:
            UserError: It cannot be read, or is of another version of this project.
        """
        return None if self.url is None else read_run_state(self.path or self.url, weights_only)

    @staticmethod
    def at(run: RunDir, record: CommitRecord, path: Path | None = None, finished: str = "") -> "ResumePoint":
        """Return the point of a checkpoint that the run committed."""
        local = None if path is None else str(path)
        return ResumePoint(run.url_of(record.name), asdict(record), local, finished, committed=record.step)

    def in_memory(self, run: RunDir, state: MemoryState) -> "ResumePoint":
        """Return the point of a state in memory, with this one as the newest that is committed."""
        if self.step == state.step:
            return replace(self, memory=asdict(state))
        name = CommitRecord.of_dict(state.record).name
        return ResumePoint(run.url_of(name), state.record, memory=asdict(state), committed=self.committed)


def agreed(
    topology: Topology, memory: RunMemory | None, choose: Callable[[MemoryState | None], ResumePoint]
) -> ResumePoint:
    """Return on all ranks what rank 0 chooses, once each node has the state in memory if it is one.

    Args:
        topology: Which process this is.
        memory: Of the nodes; None: it is not used.
        choose: Given the newest state that they hold, on rank 0.
    """

    def newest() -> MemoryState | None:
        return None if memory is None else memory.newest()

    point = ResumePoint(**topology.agree("resume point", lambda: asdict(choose(newest()))))
    if memory is None or point.memory is None:
        return point
    if (path := memory.obtain(MemoryState(**point.memory))) is not None:
        return replace(point, path=path)
    return ResumePoint(**topology.agree("resume point in storage", lambda: asdict(choose(None))))


def for_training(
    run: RunDir, resolved: dict[str, Any], given: str | None, verify: bool = True, memory: MemoryState | None = None
) -> ResumePoint:
    """Return where a fit resumes: at the newest checkpoint whose bytes match its record, or at a newer state in memory.

    Args:
        run: The run directory.
        resolved: The configuration that was asked for.
        given: The `ckpt_path` that the user gave.
        verify: Whether the bytes are verified, which downloads them; else only their number is.
        memory: The newest state that the nodes of this launch hold.

    Raises:
        UserError: There are commits but none is good, or none is left of those that there were, or the run was trained
            with another model, or has already passed the point where `given` would begin.
    """
    saved = saved_config.load(run, "fit")
    path: Path | None = None
    record = newest(run) if memory is not None or not verify else None
    if memory is not None and record is not None and record.step > memory.step:
        memory = None
    if verify and memory is None:
        record, path = newest_verified(run) or (None, None)
    if record is None:
        _require_no_commits(run, saved)
        return ResumePoint(url=given) if memory is None else ResumePoint().in_memory(run, memory)
    _warn_of_lost_records(run, record)
    saved_config.require_same_model(run, saved, resolved)
    if given not in (None, run.url_of(record.name), (saved or {}).get("ckpt_path")):
        raise UserError(
            f"ckpt_path={given!r}: {run} is at step {record.step} already, and committed steps are never written "
            "again. To start from another checkpoint give a new --run_dir; to resume this run leave --ckpt_path out"
        )
    finished = why_over(record, resolved)
    # Earlier versions did not say who had ended training.
    if not finished and record.ended is None and "end" in record.reason and finished_at(run) == record.step:
        finished = "as its last attempt says" if saved == saved_config.keep_weights(saved, resolved) else ""
    point = ResumePoint.at(run, record, path, finished)
    return point if memory is None or finished else point.in_memory(run, memory)


def with_weights(point: ResumePoint, config: Namespace) -> ResumePoint:
    """Return where a fit starts, with the weights that `--weights` asks for; a checkpoint of the run's own wins.

    Raises:
        UserError: There are no weights there, or they cannot be loaded.
        StorageAway: Their storage does not answer.
    """
    if config.weights is None:
        return point
    if point.record is not None:
        log.info("weights=%r is ignored: the run resumes from its checkpoint of step %d", config.weights, point.step)
        return point
    url, sha256 = locate_weights(config.weights)
    weights = InitialWeights(url, sha256, config.weights_only is not False, config.weights_allow)
    weights.check()
    return replace(point, weights=asdict(weights))


def _require_no_commits(run: RunDir, saved: dict[str, Any] | None) -> None:
    """Refuse to start from scratch where commits are reported that cannot be found.

    Raises:
        UserError: There are.
    """
    reported = reported_commits(run)
    if reported:
        step = max(reported)
        found = f"{RunDir.attempt(reported[step])} says that step {step} is committed"
    elif saved is not None and _says_committed(run, saved):
        found = f"{RunDir.config('fit')} is there, which is written with the first commit"
    else:
        return
    raise UserError(
        f"run_dir={run.label!r}: {found}, but there is no commit record in {CHECKPOINTS}/. Nothing was started and "
        "nothing deleted. If the storage is not mounted, mount it; if files were removed, restore them; to train from "
        "scratch give another --run_dir, or remove this one"
    )


def _says_committed(run: RunDir, saved: dict[str, Any]) -> bool:
    """Return whether fit.yaml was written with a commit: unlike earlier versions, and a fit that saves nothing."""
    trainer, attempts = saved["trainer"], [RunDir.attempt(number) for number in run.attempts()]
    saves = trainer.get("enable_checkpointing") is not False and not trainer.get("barebones")
    return saves and all("committed_step" in (run.read_json(attempt) or {}) for attempt in attempts)


def _warn_of_lost_records(run: RunDir, record: CommitRecord) -> None:
    """Say what is done again where the newest commits have lost their records."""
    reported = reported_commits(run)
    newest_step = max(reported, default=0)
    if newest_step > max(run.steps()["json"]):
        log.warning(
            "%s says that step %d is committed, but its commit record is gone: resuming at step %d, %d steps are "
            "trained again. Stop and restore the record if that is not intended",
            RunDir.attempt(reported[newest_step]),
            newest_step,
            record.step,
            newest_step - record.step,
        )


def for_evaluation(run: RunDir, resolved: dict[str, Any], which: str | None) -> ResumePoint:
    """Return which checkpoint a subcommand other than fit loads.

    Args:
        run: The run directory.
        resolved: The configuration that was asked for.
        which: `best`, `latest`, a step, or None, as in `pipeline.checkpoint.commit.select`.

    Raises:
        UserError: The run was trained with another model, or has no such checkpoint, or only damaged ones.
    """
    saved = saved_config.load(run, "fit")
    saved_config.require_same_model(run, saved, resolved, arguments_too=True)
    record, path = select_verified(run, which)
    monitor = ((saved or {}).get("checkpoints") or {}).get("monitor")
    if which is None and monitor is not None and record.monitor is None:
        log.warning(
            "no checkpoint has a finite %s, so none is the best: taking the latest, step %d", monitor, record.step
        )
    return ResumePoint.at(run, record, path)


def foreign_checkpoint(run: RunDir, url: str) -> str | None:
    """Return why it is not known what a checkpoint that the user named was trained on, None where a run says it."""
    if saved_config.load(run, "fit") is not None:
        return None
    return f"the checkpoint {url} is of another program, or of another run: what it was trained on is not known"


def require_trained_here(run: RunDir, url: str, advice: str) -> None:
    """Refuse to evaluate a checkpoint in a run directory where nothing was trained.

    Raises:
        UserError: Nothing was.
    """
    if problem := foreign_checkpoint(run, url):
        raise UserError(f"{problem}. {advice}")


def require_shared_run_dir(run: RunDir, topology: Topology) -> bool:
    """Have every node prove that it sees the same run directory.

    Returns:
        Whether an earlier process of one of these agents has started this run.

    Raises:
        UserError: It cannot be written, or some nodes see another directory.
        StorageAway: It does not answer.
    """
    nonce = topology.agree("nonce", run.write_nonce)

    def look() -> list[Any]:
        return [topology.node, socket.gethostname(), run.sees(nonce), started_runs.remembers(run.url)]

    try:
        seen: list[Any] = topology.together("sees", look)
    except StorageAway:
        if topology.rank == 0:
            with patience(None):  # it has been waited for already
                run.remove_nonce(nonce)
        raise
    topology.agree("nonce removed", lambda: run.remove_nonce(nonce))
    blind = [f"node {node} ({name})" for node, name, sees, _ in sorted({tuple(each) for each in seen}) if not sees]
    if blind:
        raise UserError(
            f"run_dir={run.label!r} is not the same place on all nodes: {', '.join(blind)} cannot see what rank 0 "
            "wrote there. Use storage that all nodes share: a network folder mounted at the same path everywhere, "
            "or s3://"
        )
    return any(remembered for _, _, _, remembered in seen)


def require_not_removed(run: RunDir) -> None:
    """Refuse to train from scratch in a run directory that was removed or unmounted since this job has started.

    Raises:
        UserError: Nothing is left there of the attempt before this one.
    """
    if not run.attempts() and not run.steps()["json"]:
        raise UserError(
            f"run_dir={run.label!r}: nothing is left there of the attempt that this job started before: the directory "
            "was removed, moved or unmounted. Restore it and start again, or give another --run_dir"
        )


def require_same_data(facts: dict[str, Any], topology: Topology) -> None:
    """Have every process prove that it trains on the same data.

    Args:
        facts: This process's, see `pipeline.config.compatibility.facts`.
        topology: Which process this is.

    Raises:
        UserError: Some have other data than rank 0.
    """
    names = [name for name in facts if name.endswith("_data") or name == "train_order"]
    seen: list[Any] = topology.gather("data", [topology.node, socket.gethostname(), [facts[name] for name in names]])
    problems = []
    for at, name in enumerate(names):
        others = sorted({f"node {node} ({host})" for node, host, values in seen if values[at] != seen[0][2][at]})
        if others:
            problems.append(
                f"data.{name.removesuffix('_data')} is not the same on all nodes: {', '.join(others)} read other "
                "samples than rank 0. Give every node the same files, or put them on storage that all share"
            )
    if problems:
        raise UserError(*problems)
