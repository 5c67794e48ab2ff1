"""What a node has, against what a training on it needs."""

import os
import re
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

from pipeline.process.cgroup import Memory
from pipeline.process.timeout import within
from pipeline.run.run_dir import RunDir
from pipeline.run.storage_errors import is_away, storage_error

_MB = 1 << 20
_GB = 1 << 30
_DOCKERS_SHM = 64 * _MB
"""What Docker and Kubernetes give a container that asks for nothing."""
_DISK = 1024 * _MB
_DRIVERS = {12: 525, 13: 580}
"""The oldest driver of each major version of CUDA: docs.nvidia.com/deploy/cuda-compatibility (minor version rules)."""
_DRIVER_SAYS = Path("/proc/driver/nvidia/version")
SKEW = 5.0
"""Seconds by which clocks may differ without a word."""


class Verdict(StrEnum):
    """What follows from a finding."""

    FINE = "fine"
    DOUBTFUL = "doubtful"  # training goes, but not as well as it might
    MUST_CHANGE = "must change"  # the user
    BROKEN = "broken"  # may be better at the next try, or on another node


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        about: Such as `memory`.
        found: In words, with units.
        verdict: What follows.
        advice: How to mend it; empty where there is nothing to mend.
    """

    about: str
    found: str
    verdict: Verdict = Verdict.FINE
    advice: str = ""


@dataclass(frozen=True)
class Needs:
    """What a node of the job has to have.

    Attributes:
        gpus: Devices; None: one for each process where torch sees any.
        memory: MB that are free; 0: it is only said.
        shm: MB of /dev/shm that are free; 0: doubtful at what containers get unasked.
        disk: MB that are free where temporary files go; 0: doubtful below 1024.
    """

    gpus: int | None = None
    memory: int = 0
    shm: int = 0
    disk: int = 0


def findings(needs: Needs, run_dir: str, processes: int, seconds: float) -> list[Finding]:
    """Look at this node.

    Args:
        needs: Of the job.
        run_dir: The run directory, whose storage is tried.
        processes: Of the job on this node.
        seconds: In which the storage must have answered.
    """
    found = [*devices(needs.gpus, processes), memory(needs.memory, Memory().free())]
    with suppress(OSError):  # a system without it
        shared = shutil.disk_usage("/dev/shm")  # noqa: S108 - it is what loader workers use
        found.append(shm(needs.shm, shared.total, shared.free))
    for folder in _disks(RunDir(run_dir)):
        found.append(disk(needs.disk, folder, shutil.disk_usage(folder).free))
    return found + in_time(lambda: storage(run_dir), run_dir, seconds)


def _disks(run: RunDir) -> list[str]:
    """Where temporary files go, and a run that is kept on a disk of its own."""
    folders = [tempfile.gettempdir()]
    if run.is_local:
        folder = next(each for each in (Path(run.path), *Path(run.path).absolute().parents) if each.exists())
        if folder.stat().st_dev != Path(folders[0]).stat().st_dev:
            folders.append(str(folder))
    return folders


def in_time(look: Callable[[], list[Finding]], url: str, seconds: float) -> list[Finding]:
    """What is found of a storage within a limit: a stopped one, or what swallows packets, may never answer."""
    found = within(seconds, look, "storage")
    if found is not None:
        return found
    advice = f"{RunDir(url).label} does not answer: look at AWS_ENDPOINT_URL, the network, and the store itself"
    return [Finding("storage", f"no answer within {seconds:.0f} s", Verdict.BROKEN, advice)]


def devices(wanted: int | None, processes: int) -> Iterator[Finding]:
    """The GPUs: how many there are, whether they work, and why there are too few."""
    count = torch.cuda.device_count()
    wanted = wanted if wanted is not None else processes if count else 0
    if not wanted:
        yield Finding("devices", f"{count} GPUs, none is asked for" if count else "CPU")
        return
    if count < wanted:
        yield Finding("devices", f"{count} of {wanted} GPUs", Verdict.MUST_CHANGE, _why_too_few(count))
        return
    names = {torch.cuda.get_device_name(number) for number in range(wanted)}
    free = []
    for number in range(wanted):
        try:
            at_first, total = torch.cuda.mem_get_info(number)
            ones = torch.ones(1024, 1024, device=f"cuda:{number}")
            if float((ones @ ones).sum()) != 1024.0**3:
                raise RuntimeError("a product of matrices came out wrong")
            free.append(at_first / total)
        except RuntimeError as error:
            said = str(error).partition("\n")[0]
            yield Finding(f"GPU {number}", said, Verdict.BROKEN, "take this node out, or reset the device")
    taken = [f"{number}" for number, share in enumerate(free) if share < 0.8]
    if taken:
        words = f"less than 80 % of the memory of GPU {', '.join(taken)} is free"
        yield Finding("devices", words, Verdict.DOUBTFUL, "another process has it: nvidia-smi says which")
    driver = _driver()
    said = f", driver {driver[0]}.{driver[1]}" if driver else ""
    yield Finding("devices", f"{wanted} x {' and '.join(sorted(names))}{said}, torch for CUDA {torch.version.cuda}")


def _driver() -> tuple[int, int] | None:
    """The version of NVIDIA's driver; None where none is seen."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+)\.(\d+)", _DRIVER_SAYS.read_text())
    except OSError:
        return None
    return (int(found[1]), int(found[2])) if found else None


def _why_too_few(count: int) -> str:
    if torch.version.cuda is None:
        return "torch is built without CUDA here: build the image with TORCH=cuda"
    driver = _driver()
    if driver is None:
        return (
            "no NVIDIA driver is seen here: ask the launcher for GPUs (--gpu), and its host for the container toolkit"
        )
    oldest = _DRIVERS.get(int(torch.version.cuda.partition(".")[0]), 0)
    if driver[0] < oldest:
        return (
            f"the driver {driver[0]}.{driver[1]} is too old for CUDA {torch.version.cuda}, for which torch is built: "
            f"{oldest} or newer is needed"
        )
    return f"ask for {count}, or take a node that has more" if count else "the driver gives this container none"


def memory(wanted: int, free: int | None) -> Finding:
    """The memory that can still be taken. MB wanted, bytes free."""
    if free is None:
        return Finding("memory", "unknown")
    advice = "ask for more (--memory), or take a node that has it"
    return _against("memory", f"{free / _GB:.1f} GB free", free, wanted, advice)


def shm(wanted: int, size: int, free: int) -> Finding:
    """Shared memory, through which loader workers hand over batches. MB wanted, bytes of its size and free."""
    advice = "ask for more by --shm"
    doubt = f"loader workers die with a bus error when it is full: {advice}" if size <= _DOCKERS_SHM else ""
    return _against("shared memory", f"{free >> 20} of {size >> 20} MB free", free, wanted, advice, doubt)


def disk(wanted: int, folder: str, free: int) -> Finding:
    """The disk for temporary and cached files. MB wanted, bytes free."""
    doubt = "what is cached or staged may not fit: free some, or set TMPDIR" if free < _DISK else ""
    advice = "free some, or take another place"
    return _against("disk", f"{free / _GB:.1f} GB free in {folder}", free, wanted, advice, doubt)


def _against(about: str, found: str, free: int, wanted: int, advice: str, doubt: str = "") -> Finding:
    """What is free against what is wanted; where nothing is, what there may be to doubt."""
    if free < wanted * _MB:
        return Finding(about, found, Verdict.MUST_CHANGE, f"{wanted} MB are needed: {advice}")
    if not wanted and doubt:
        return Finding(about, found, Verdict.DOUBTFUL, doubt)
    return Finding(about, found)


def storage(url: str, clock: Callable[[], float] = time.time) -> list[Finding]:
    """The run directory's storage: an object is written, read and removed; its time is compared with ours."""
    run = RunDir(url)
    name, data = f"preflight-{uuid.uuid4().hex}", os.urandom(64)
    began, before = time.monotonic(), clock()
    try:
        run.write(name, data)
        after = clock()
        try:
            written = _modified(run, name)
            same = run.read(name) == data
        finally:
            run.remove(name)
    except Exception as error:  # noqa: BLE001 - whatever a storage of any kind raises, it says what is wrong with it
        if is_away(error):
            return [Finding("storage", storage_error(error), Verdict.BROKEN, f"{run.label} does not answer")]
        advice = f"nothing can be kept in {run.label}: mend its name, or this user's permissions or credentials there"
        return [Finding("storage", storage_error(error), Verdict.MUST_CHANGE, advice)]
    if not same:
        return [
            Finding("storage", "reads are not what was written", Verdict.BROKEN, f"{run.label} is no place for a run")
        ]
    found = [Finding("storage", f"written, read and removed in {1000 * (time.monotonic() - began):.0f} ms")]
    if written is not None:
        # Many say whole seconds only.
        skew = before - written if before - 1.0 > written else min(0.0, after - written)
        if abs(skew) > SKEW:
            advice = "signed requests are refused beyond some minutes, and logs mislead: set this node's clock by NTP"
            words = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the storage's"
            found.append(Finding("clock", words, Verdict.DOUBTFUL, advice))
    return found


def _modified(run: RunDir, name: str) -> float | None:
    """When the storage says that an object was written, in seconds since 1970; None where it does not say."""
    with suppress(NotImplementedError, AttributeError, ValueError):
        return float(run.fs.modified(f"{run.path}/{name}").timestamp())
    return None
