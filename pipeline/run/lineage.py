"""Records a run where TorchX's own tracker commands find it: what it left, how it ended, and what it was made from.

TorchX names its trackers to the processes that it starts, by TORCHX_TRACKERS. Its FsspecTracker keeps a folder for each
job, called by the job's handle in base 32, with small files in `metadata`, `artifacts` and `sources`; that layout is
written here, for TorchX itself is not in the container. A name under which a file is there already is written again, so
that an attempt takes the place of the one before it.
"""

import hashlib
import json
import logging
import os
import threading
from base64 import b32encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec

from pipeline.run.run_dir import RunDir
from pipeline.run.storage import is_local, make_folder, open_filesystem, options, read, write
from pipeline.run.storage_errors import storage_error

log = logging.getLogger(__name__)

JOB, PARENT, TRACKERS = "TORCHX_JOB_ID", "TORCHX_PARENT_RUN_ID", "TORCHX_TRACKERS"
_LIMIT = 10.0
"""Seconds that a run waits for its tracker at its begin and at its end."""
_ENTRY = "pipeline"
"""The name of the files whose names TorchX leaves open."""
_AWAY = f"no answer within {_LIMIT:g} s"
_said: set[str] = set()
"""What was said of trackers: once in a process is enough."""


def of_attempt(run: RunDir, attempt: Mapping[str, Any]) -> None:
    """Record an attempt at a training: its run directory, its best checkpoint, its configuration and how it ended.

    Args:
        run: The run directory.
        attempt: Its record.
    """
    if not os.environ.get(TRACKERS):
        return
    best = (attempt.get("commits") or {}).get("best") or {}
    step = best.get("step", attempt.get("last_step") or attempt.get("committed_step"))
    keys = ("attempt", "host", "world_size", "nodes", "started", "ended", "status", "reason", "last_step")
    metadata = {"command": "fit", "run_dir": run.url, **{key: attempt.get(key) for key in keys}}
    if config := attempt.get("config"):
        metadata["config_digest"] = f"sha256:{hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()}"
    if best:
        metadata[str(best.get("name"))] = best.get("value")
    artifacts: dict[str, Any] = {"run_dir": (run.url, {})}
    if step:
        artifacts["checkpoint"] = (run.url_of(RunDir.checkpoint(step)), {"step": step})
    _record(metadata, artifacts, None)


def of_result(command: str, run: RunDir, metadata: Mapping[str, Any], receipt: str) -> None:
    """Record a test or a prediction, whose source is the training that left the checkpoint.

    Args:
        command: Which one.
        run: The run directory.
        metadata: Metrics or counts by name.
        receipt: The name of its receipt in the run directory.
    """
    if os.environ.get(TRACKERS):
        artifacts: dict[str, Any] = {"run_dir": (run.url, {}), "receipt": (run.url_of(receipt), {})}
        _record({"command": command, "run_dir": run.url, **metadata}, artifacts, run)


def _record(metadata: dict[str, Any], artifacts: dict[str, Any], trained: RunDir | None) -> None:
    """Write to every tracker, within a limit. A tracker that cannot be written fails no run: one line says so."""
    failed = [_AWAY]

    def work() -> None:
        try:
            files = dict(_files(metadata, artifacts, trained))
            for fs, root in _roots():
                for name, content in files.items():
                    _write(fs, f"{root}/{name}", content)
            failed.clear()
        except Exception as error:  # noqa: BLE001 - the run is what matters
            failed[:] = [storage_error(error)]

    thread = threading.Thread(target=work, name="lineage", daemon=True)
    thread.start()
    thread.join(1.0 if _AWAY in _said else _LIMIT)
    if failed and failed[0] not in _said:
        _said.add(failed[0])
        log.warning("the run is not recorded in TorchX's tracker: %s", failed[0])


def _files(metadata: dict[str, Any], artifacts: dict[str, Any], trained: RunDir | None) -> Iterator[tuple[str, bytes]]:
    """Yield the files of this job: their names below a tracker's root, and their content."""
    job = os.environ.get(JOB, "")
    if not job:
        return
    folder = _encoded(job)
    known = {key: value for key, value in metadata.items() if value is not None}
    yield f"{folder}/metadata/{_ENTRY}", json.dumps({"metadata": known}).encode()
    for name, (path, more) in artifacts.items():
        yield f"{folder}/artifacts/{name}", json.dumps({"name": name, "path": path, "metadata": more}).encode()
    if parent := os.environ.get(PARENT):
        yield f"{folder}/sources/{_encoded(parent)}", b"\n"
    source = None if trained is None else _training_job(trained)
    if source and source != job:
        yield f"{folder}/sources/{_encoded(source)}", b"checkpoint\n"


def _training_job(run: RunDir) -> str | None:
    """Return TorchX's handle of the newest job that trained a run; None where TorchX has not started it."""
    for number in sorted(run.attempts(), reverse=True):
        launch = (run.read_json(RunDir.attempt(number)) or {}).get("launch")
        if isinstance(launch, str) and "://" in launch:
            return launch
    return None


def _roots() -> Iterator[tuple[Any, str]]:
    """Yield filesystem and root of each tracker of TorchX's own kind; one of another kind is named, once."""
    for name in filter(None, os.environ.get(TRACKERS, "").split(",")):
        url = os.environ.get(f"TORCHX_TRACKER_{name.upper()}_CONFIG")
        config = {} if url is None else _settings(url)
        if not {"protocol", "root_path"} <= config.keys():
            if name not in _said:
                _said.add(name)
                log.warning(
                    "%s=%s: the run is not recorded there: %s must name a file with protocol= and root_path= that can "
                    "be read here, as for TorchX's FsspecTracker; other trackers are not written",
                    *(TRACKERS, name, f"TORCHX_TRACKER_{name.upper()}_CONFIG"),
                )
            continue
        protocol, root = str(config.pop("protocol")), str(config.pop("root_path")).rstrip("/")
        if config:  # options of the filesystem's own, as TorchX takes them
            yield fsspec.filesystem(protocol, **{**options(f"{protocol}://{root}"), **config}), root
        else:
            yield open_filesystem(root if protocol in ("file", "local") else f"{protocol}://{root}", TRACKERS)


def _settings(url: str) -> dict[str, Any]:
    """Return the settings in a tracker's file, in which `a.b=c` stands for `{"a": {"b": "c"}}`; {} without the file."""
    data = read(*open_filesystem(url, TRACKERS))
    found: dict[str, Any] = {}
    for line in [] if data is None else data.decode().splitlines():
        key, equals, value = line.partition("=")
        *above, last = key.strip().split(".")
        if equals and value.strip() and last and not line.startswith("#"):
            inner = found
            for part in above:
                inner = inner.setdefault(part, {})
            inner[last] = value.strip()
    return found


def _write(fs: Any, path: str, content: bytes) -> None:
    if is_local(fs):
        make_folder(Path(path).parent)
    write(fs, path, content)


def _encoded(job: str) -> str:
    """Return a job's handle as the name of a file, as TorchX encodes it."""
    return b32encode(job.encode("ascii", "replace")).decode()
