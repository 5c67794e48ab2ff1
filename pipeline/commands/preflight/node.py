"""Checks of one node: what it has, against what the job requires."""

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch

from pipeline.checkpoint.transfer import open_ranges, open_writer
from pipeline.process.cgroup import MemoryCgroup
from pipeline.process.patience import Patience, patience
from pipeline.process.timeout import within
from pipeline.run.run_dir import RunDir
from pipeline.run.storage_errors import is_away, storage_error

_MB = 1 << 20
_GB = 1 << 30
_DOCKERS_SHM = 64 * _MB
"""What Docker and Kubernetes give a container by default."""
_DISK = 1024 * _MB
MAX_SKEW = 5.0
"""Seconds by which clocks may differ without a warning."""


class CheckStatus(StrEnum):
    """What follows from a finding."""

    OK = "ok"
    WARNING = "warning"  # the job can train, but not as well as it might
    ACTION_REQUIRED = "action required"  # by the user
    FAILED = "failed"  # another try, or another node, may do better


@dataclass(frozen=True)
class NodeFinding:
    """The result of one check.

    Attributes:
        check: Such as `memory`.
        found: One line, with units.
        status: What follows.
        advice: How to fix it; empty if there is nothing to fix.
    """

    check: str
    found: str
    status: CheckStatus = CheckStatus.OK
    advice: str = ""


@dataclass(frozen=True)
class NodeRequirements:
    """What a node of the job must have.

    Attributes:
        gpus: GPUs; None: one per process if torch sees any.
        memory: MB free; 0: only reported.
        shm: MB free in /dev/shm; 0: a warning at what containers get by default.
        disk: MB free for temporary files; 0: a warning below 1024.
    """

    gpus: int | None = None
    memory: int = 0
    shm: int = 0
    disk: int = 0


def check_node(required: NodeRequirements, run_dir: str, processes: int, seconds: float) -> list[NodeFinding]:
    """Check this node.

    Args:
        required: By the job.
        run_dir: The run directory, whose storage is checked.
        processes: Of the job on this node.
        seconds: Timeout of the storage.
    """
    findings = [*check_gpus(required.gpus, processes), check_memory(required.memory, MemoryCgroup().free())]
    with suppress(OSError):  # a system without it
        shared = shutil.disk_usage("/dev/shm")  # noqa: S108 - loader workers use it
        findings.append(check_shm(required.shm, shared.total, shared.free))
    for folder in _disks(RunDir(run_dir)):
        findings.append(check_disk(required.disk, folder, shutil.disk_usage(folder).free))
    return findings + storage_within(seconds, lambda: check_storage(run_dir), run_dir)


def _disks(run: RunDir) -> list[str]:
    """Return the folder of temporary files, and one of the run if that is on another local disk."""
    folders = [tempfile.gettempdir()]
    if run.is_local:
        folder = next(each for each in (Path(run.path), *Path(run.path).absolute().parents) if each.exists())
        if folder.stat().st_dev != Path(folders[0]).stat().st_dev:
            folders.append(str(folder))
    return folders


def storage_within(seconds: float, check: Callable[[], list[NodeFinding]], url: str) -> list[NodeFinding]:
    """Check a storage with a timeout: a server that hangs, or a network that drops packets, may never answer."""

    def patient() -> list[NodeFinding]:
        with patience(Patience(seconds / 2)):
            return check()

    found = within(seconds, patient, "storage")
    if found is not None:
        return found
    advice = f"{RunDir(url).label} does not answer: check AWS_ENDPOINT_URL, the network, and the store itself"
    return [NodeFinding("storage", f"no answer within {seconds:.0f} s", CheckStatus.FAILED, advice)]


def check_gpus(required: int | None, processes: int) -> Iterator[NodeFinding]:
    """Check how many GPUs there are, whether they work, and why there are too few."""
    count = torch.cuda.device_count()
    required = required if required is not None else processes if count else 0
    if not required:
        yield NodeFinding("devices", f"{count} GPUs, none is required" if count else "CPU")
        return
    if count < required:
        yield NodeFinding("devices", f"{count} of {required} GPUs", CheckStatus.ACTION_REQUIRED, _why_too_few(count))
        return
    names = {torch.cuda.get_device_name(number) for number in range(required)}
    free = []
    for number in range(required):
        try:
            at_first, total = torch.cuda.mem_get_info(number)
            ones = torch.ones(1024, 1024, device=f"cuda:{number}")
            if float((ones @ ones).sum()) != 1024.0**3:
                raise RuntimeError("a product of matrices came out wrong")
            free.append(at_first / total)
        except RuntimeError as error:
            first_line = str(error).partition("\n")[0]
            yield NodeFinding(f"GPU {number}", first_line, CheckStatus.FAILED, "remove this node, or reset the device")
    taken = [f"{number}" for number, share in enumerate(free) if share < 0.8]
    if taken:
        found = f"less than 80 % of the memory of GPU {', '.join(taken)} is free"
        yield NodeFinding("devices", found, CheckStatus.WARNING, "another process uses it: nvidia-smi shows which")
    yield NodeFinding("devices", f"{required} x {' and '.join(sorted(names))}, torch for CUDA {torch.version.cuda}")


def _why_too_few(count: int) -> str:
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:  # built without CUDA, no driver, one too old, no device: torch says
        why = str(error).partition(". ")[0]
        return f"{why}: request GPUs from the launcher (--gpu), and use an image for their driver (TORCH=cuda)"
    return f"request {count}, or use a node that has more"


def check_memory(required: int, free: int | None) -> NodeFinding:
    """Check the memory: MB required, bytes free."""
    if free is None:
        return NodeFinding("memory", "unknown")
    advice = "request more (--memory), or use a node that has it"
    return _compare("memory", f"{free / _GB:.1f} GB free", free, required, advice)


def check_shm(required: int, size: int, free: int) -> NodeFinding:
    """Check the shared memory, through which loader workers pass batches: MB required, bytes of its size and free."""
    advice = "request more by --shm"
    warning = f"loader workers die with a bus error when it is full: {advice}" if size <= _DOCKERS_SHM else ""
    return _compare("shared memory", f"{free >> 20} of {size >> 20} MB free", free, required, advice, warning)


def check_disk(required: int, folder: str, free: int) -> NodeFinding:
    """Check the disk for temporary and cached files: MB required, bytes free."""
    warning = "cached or staged files may not fit: free some space, or set TMPDIR" if free < _DISK else ""
    advice = "free some space, or use another disk"
    return _compare("disk", f"{free / _GB:.1f} GB free in {folder}", free, required, advice, warning)


def _compare(check: str, found: str, free: int, required: int, advice: str, warning: str = "") -> NodeFinding:
    """Compare what is free with what is required; without a requirement there may be a warning."""
    if free < required * _MB:
        return NodeFinding(check, found, CheckStatus.ACTION_REQUIRED, f"{required} MB are required: {advice}")
    if not required and warning:
        return NodeFinding(check, found, CheckStatus.WARNING, warning)
    return NodeFinding(check, found)


def check_storage(url: str, clock: Callable[[], float] = time.time) -> list[NodeFinding]:
    """Write, read and remove an object in the run directory's storage, and compare its time with this node's clock."""
    run = RunDir(url)
    name, data = f"preflight-{uuid.uuid4().hex}", os.urandom(64)
    began, before = time.monotonic(), clock()
    try:
        run.write(name, data[::-1])
        # The way of a checkpoint's bytes is another one than that of small files.
        writer = open_writer(run, name)
        writer.write(data)
        writer.close()
        after = clock()
        try:
            written = _modified(run, name)
            same = run.read(name) == data == bytes(open_ranges(run, name)(0, len(data)))
        finally:
            run.remove(name)
    except Exception as error:  # noqa: BLE001 - a storage of any kind may raise anything
        if is_away(error):
            return [NodeFinding("storage", storage_error(error), CheckStatus.FAILED, f"{run.label} does not answer")]
        advice = f"{run.label} cannot be written: fix its name, or this user's permissions or credentials there"
        return [NodeFinding("storage", storage_error(error), CheckStatus.ACTION_REQUIRED, advice)]
    if not same:
        return [
            NodeFinding(
                "storage", "an object is read back differently", CheckStatus.FAILED, f"{run.label} cannot hold a run"
            )
        ]
    found = [NodeFinding("storage", f"written, read and removed in {1000 * (time.monotonic() - began):.0f} ms")]
    if written is not None:
        # Many stores have a resolution of whole seconds.
        skew = before - written if before - 1.0 > written else min(0.0, after - written)
        if abs(skew) > MAX_SKEW:
            advice = "S3 refuses signed requests beyond some minutes: set this node's clock by NTP"
            words = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the storage's"
            found.append(NodeFinding("clock", words, CheckStatus.WARNING, advice))
    return found


def _modified(run: RunDir, name: str) -> float | None:
    """Return the modification time of an object, in seconds since 1970; None if the storage has none."""
    with suppress(NotImplementedError, AttributeError, ValueError):
        return float(run.fs.modified(f"{run.path}/{name}").timestamp())
    return None
