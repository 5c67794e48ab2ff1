"""Where a subcommand goes on: with which checkpoint of its run. Rank 0 decides for all.

A run directory that holds checkpoints is never started afresh in silence, and what it has committed is never written
again.
"""

import hashlib
import logging
import socket
import time
from dataclasses import dataclass
from typing import Any

import fsspec

from pipeline.checkpoint.commit import newest
from pipeline.checkpoint.load import newest_verified, select_verified
from pipeline.config import configuration
from pipeline.errors import StorageAway, UserError
from pipeline.process.topology import Topology
from pipeline.run.attempts import finished_at
from pipeline.run.run_dir import RunDir
from pipeline.run.storage_errors import is_away, raise_for_user, storage_error

log = logging.getLogger(__name__)

_AWAY_LIMIT = 60.0
"""Seconds."""


@dataclass(frozen=True)
class Start:
    """A decision, in JSON's types.

    Attributes:
        url: The checkpoint to load; None: there is none to go on from.
        step: Its optimizer step, None where only the user knows it.
        sha256: Its digest, `sha256:<hex>`, None where only the user knows it.
        own: Whether the run itself committed it.
        finished: Whether training is over and nothing is asked that could go on.
    """

    url: str | None = None
    step: int | None = None
    sha256: str | None = None
    own: bool = False
    finished: bool = False


def of_training(run: RunDir, resolved: dict[str, Any], given: str | None, compare: bool = True) -> Start:
    """Where a fit goes on: from the newest checkpoint whose bytes match its record.

    Args:
        run: The run directory.
        resolved: What was asked for.
        given: The `ckpt_path` that the user gave.
        compare: Whether the bytes are looked at, which downloads them; else only their number is.

    Raises:
        UserError: There are commits but none is good, or the run was trained with another model, or stands already
            where `given` would begin.
    """
    saved = configuration.saved_config(run, "fit")
    if compare:
        found = newest_verified(run)
        record = None if found is None else found[0]
    else:
        record = newest(run)
    if record is None:
        return Start(url=given)
    configuration.same_model(run, saved, resolved)
    own = run.url_of(record.name)
    if given not in (None, own, (saved or {}).get("ckpt_path")):
        raise UserError(
            f"ckpt_path={given!r}: {run} stands at step {record.step} already, and committed steps are never written "
            "again. To go on from another checkpoint give a new --run_dir; to go on with this run leave --ckpt_path out"
        )
    finished = saved == resolved and ("end" in record.reason or finished_at(run) == record.step)
    return Start(own, record.step, record.sha256, own=True, finished=finished)


def of_evaluation(run: RunDir, resolved: dict[str, Any], which: str | None) -> Start:
    """Which checkpoint a subcommand other than fit takes.

    Args:
        run: The run directory.
        resolved: What was asked for.
        which: `best`, `latest`, a step, or None, as in `pipeline.checkpoint.commit.select`.

    Raises:
        UserError: The run was trained with another model, or has no such checkpoint, or only damaged ones.
    """
    configuration.same_model(run, configuration.saved_config(run, "fit"), resolved, wholly=True)
    record, _ = select_verified(run, which)
    return Start(run.url_of(record.name), record.step, record.sha256, own=True)


def meet(run: RunDir, topology: Topology) -> None:
    """Every node proves that it sees the same run directory.

    Raises:
        UserError: It cannot be written, or some nodes look at another place.
        StorageAway: It does not answer for a minute.
    """
    topology.agree("storage", lambda: _until_it_answers(run))
    nonce = topology.agree("nonce", run.write_nonce)
    seen = topology.gather("sees", [topology.node, socket.gethostname(), run.sees(nonce)])
    topology.agree("nonce removed", lambda: run.remove(nonce))
    blind = [f"node {node} ({name})" for node, name, sees in sorted({tuple(each) for each in seen}) if not sees]
    if blind:
        raise UserError(
            f"run_dir={run.label!r} is not the same place on all nodes: {', '.join(blind)} cannot see what rank 0 "
            "wrote there. Use storage that all nodes share: a network folder mounted at the same path everywhere, "
            "or s3://"
        )


def _until_it_answers(run: RunDir) -> None:
    """Wait while the storage is away: a start in the middle of an outage must not be the end of a run."""
    began, pause = time.monotonic(), 1.0
    while True:
        try:
            run.steps()
            return
        except Exception as error:
            if not is_away(error):
                return  # whoever needs what is missing says it better
            if time.monotonic() - began + pause > _AWAY_LIMIT:
                raise StorageAway(
                    f"run_dir={run.label!r}: its storage has not answered for {_AWAY_LIMIT:.0f} s: "
                    f"{storage_error(error)}. Is its address right, and is it up?"
                ) from error
            log.warning("%s does not answer, trying again: %s", run, storage_error(error))
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def same_data(facts: dict[str, Any], topology: Topology) -> None:
    """Every process proves that it trains on the same data.

    Args:
        facts: This process's, see `pipeline.config.compatibility.facts`.
        topology: Which process this is.

    Raises:
        UserError: Some have others than rank 0.
    """
    names = [name for name in facts if name.endswith("_data")]
    seen = topology.gather("data", [topology.node, socket.gethostname(), [facts[name] for name in names]])
    problems = []
    for at, name in enumerate(names):
        others = sorted({f"node {node} ({host})" for node, host, values in seen if values[at] != seen[0][2][at]})
        if others:
            split = name.removesuffix("_data")
            problems.append(
                f"data.{split} is not the same on all nodes: {', '.join(others)} read other samples than rank 0. Give "
                "every node the same files, or put them on storage that all share"
            )
    if problems:
        raise UserError(*problems)


def sha256(url: str) -> str:
    """The digest of a checkpoint that no commit record describes, `sha256:<hex>`.

    Raises:
        UserError: It cannot be read.
        StorageAway: Its storage does not answer.
    """
    digest = hashlib.sha256()
    try:
        with fsspec.open(url, "rb") as file:
            while part := file.read(1 << 22):
                digest.update(part)
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        raise_for_user(error, f"ckpt_path={url!r} cannot be read", "Name a checkpoint file that this user may read")
    return f"sha256:{digest.hexdigest()}"
