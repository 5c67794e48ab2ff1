"""`python -m pipeline probe <url>`: whether a store can carry a run, before any node is paid for.

Each check is a line: `ok`; `MISSING`, for what the store lacks and the pipeline can do without; `FAILED`, for what it
cannot do without; `AWAY`, where it did not answer. Everything that was written is removed again, also when a check
fails.
"""

import argparse
import logging
import os
import re
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoint.cleanup import abort, open_uploads
from pipeline.checkpoint.transfer import PART, open_ranges, open_writer
from pipeline.errors import CRASH, DONE, USER_MUST_CHANGE, UserError, chain
from pipeline.process.timeout import within
from pipeline.run.retry import patiently
from pipeline.run.run_dir import RunDir
from pipeline.run.storage_errors import is_away, storage_error

log = logging.getLogger(__name__)

_SMALL, _LARGE, _OPEN, _ONCE = "small", "large", "open", "once"
_BYTES = 1 << 20
_HANGS = "no answer within"
_FAILED, _AWAY = "FAILED", "AWAY"
_BAD = (_FAILED, _AWAY)
_AT_ONCE = 4
_RIVALS = 8
_VISIBLE = "other nodes would not see a commit. Use a store with read-after-write consistency"
_TORN = "a torn checkpoint would look whole"


class _CheckFailed(Exception):
    """What the store did instead."""


class _FeatureMissing(Exception):
    """What the store lacks, and what that means."""


@dataclass(frozen=True)
class _Trial:
    """A fresh folder, and what the checks write there."""

    run: RunDir
    size: int
    first: bytes
    second: bytes
    part: bytes


def probe(url: str, megabytes: int = 64, limit: float = 60.0) -> tuple[str, bool]:
    """Try everything that a run needs of its storage, in a fresh folder.

    Args:
        url: Where runs are to be stored: a local path or any fsspec URL.
        megabytes: Size of the file whose transfer is timed.
        limit: Seconds after which a check that hangs has failed.

    Returns:
        A text to read, and whether the store has all that is needed.

    Raises:
        UserError: The URL is invalid, or there is nothing to measure.
        StorageAway: The store does not answer.
    """
    if megabytes < 1:
        raise UserError(f"megabytes={megabytes} must be >= 1")
    base = RunDir(url)
    run = RunDir(f"{url if url.endswith('/') else url + '/'}probe-{uuid.uuid4().hex[:12]}")
    made = _folders_to_make(run)
    size = megabytes << 20
    patiently(f"{base}", lambda: within(limit, lambda: run.read(_SMALL), "probe"))  # one that hangs fails in the checks
    trial = _Trial(run, size, os.urandom(_BYTES), os.urandom(_BYTES), os.urandom(min(PART, size)))
    results: list[tuple[str, str, str]] = []
    try:
        for name, check in _CHECKS.items():
            # A large transfer may take long; slower than 1 MB/s is as good as none.
            seconds = limit + (megabytes if name in ("up", "down") else 0)
            verdict, found = _run_check(name, lambda check=check: check(trial), seconds)  # type: ignore[misc]
            results.append((verdict, found, name))
            hangs = found.startswith(_HANGS)
            if verdict in _BAD and (name == "write" or hangs):
                later = f"; should the store wake up later, remove {run} by hand" if hangs else ""
                results.append(("", f"the checks after it were not tried{later}", ""))
                break
    finally:
        verdict, left = _run_check("clean up", lambda: _clean_up(run, made), limit)
    if (verdict in _BAD or left) and len(results) > 2:
        results.append((_FAILED, f"{run} is left, remove it by hand: {left}", "clean up"))
    good = not any(verdict in _BAD for verdict, _, _ in results)
    lines = [f"{verdict:<8}{name:<18}{found}".rstrip() for verdict, found, name in results]
    end = "this store can carry a run" if good else "this store cannot carry a run yet: fix what FAILED"
    return "\n".join([f"probe of {base}", "", *lines, "", end]), good


def _write(trial: _Trial) -> str:
    # Some stores remember for a while that a file was not there.
    _require(trial.run.read(_SMALL) is None, "a file in a fresh folder exists before it was written")
    trial.run.write(_SMALL, trial.first)
    return f"{_BYTES} bytes"


def _read_after_write(trial: _Trial) -> str:
    _require(trial.run.read(_SMALL) == trial.first, f"a read right after the write returns other bytes: {_VISIBLE}")
    trial.run.write(_SMALL, trial.second)
    _require(trial.run.read(_SMALL) == trial.second, f"a read right after a second write returns the first: {_VISIBLE}")
    return "seen at once, also when written again"


def _list(trial: _Trial) -> str:
    found = _listed(trial.run).get(_SMALL, "absent")
    _require(
        found == _BYTES,
        f"a file of {_BYTES} bytes is listed as {found}: a resume would not find the newest checkpoint. Use a store "
        "with consistent listings",
    )
    return "complete right after the write, with sizes"


def _ranged_read(trial: _Trial) -> str:
    start, end = _BYTES // 3, _BYTES // 3 + 4321
    same = bytes(open_ranges(trial.run, _SMALL)(start, end)) == trial.second[start:end]
    _require(same, "a range of bytes is read as other bytes: checkpoints cannot be downloaded in parts")
    return "exact"


def _upload(trial: _Trial) -> str:
    run, began = trial.run, time.monotonic()
    writer = open_writer(run, _LARGE)
    try:
        for start in range(0, trial.size, len(trial.part)):
            writer.write(trial.part[: trial.size - start])
    finally:
        writer.close()
    run.sync(_LARGE)
    seconds, stored = time.monotonic() - began, run.size(_LARGE)
    _require(stored == trial.size, f"wrote {trial.size} bytes, the store reports {stored}")
    parts = f" in parts of {PART >> 20} MB" if run.is_s3 and trial.size > PART else ""
    return f"{trial.size / 1e6 / seconds:.0f} MB/s ({trial.size} bytes{parts})"


def _download(trial: _Trial) -> str:
    _require(trial.run.size(_LARGE) == trial.size, "not tried, since the upload failed")
    get, length = open_ranges(trial.run, _LARGE), len(trial.part)

    def is_same(start: int) -> bool:
        end = min(start + length, trial.size)
        return bytes(get(start, end)) == trial.part[: end - start]

    began = time.monotonic()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        same = all(pool.map(is_same, range(0, trial.size, length)))
    seconds = time.monotonic() - began
    _require(same, "the bytes differ from those that were uploaded: do not store checkpoints there")
    return f"{trial.size / 1e6 / seconds:.0f} MB/s{', perhaps from memory' if trial.run.is_local else ''}"


def _multipart_abort(trial: _Trial) -> str:
    run = trial.run
    if not run.is_s3:
        return "not needed: an unfinished file is visible here, and the next start removes it"
    bucket, key = run.object_of(_OPEN)
    target = {"Bucket": bucket, "Key": key}
    upload = str(run.fs.call_s3("create_multipart_upload", **target)["UploadId"])
    run.fs.call_s3("upload_part", **target, UploadId=upload, PartNumber=1, Body=b"x")
    _require(run.size(_OPEN) is None, f"a file exists before its upload is completed: {_TORN}")
    try:
        listed = upload in (each for _, each in open_uploads(run, _OPEN))
        abort(run, _OPEN, upload)
        aborted = upload not in (each for _, each in open_uploads(run, _OPEN))
    except Exception as error:
        with suppress(Exception):
            abort(run, _OPEN, upload)
        raise _FeatureMissing(_no_cleanup(_text(error))) from error
    if not (listed and aborted):
        raise _FeatureMissing(_no_cleanup("an aborted one is still open" if listed else "an open one is not listed"))
    _require(run.size(_OPEN) is None, f"an aborted upload has left a file: {_TORN}")
    return "an open upload is listed, and gone once aborted"


def _conditional_put(trial: _Trial) -> str:
    errors: list[Exception] = []

    def create(rival: int) -> bool:
        try:
            return trial.run.create(_ONCE, b"%d" % rival)
        except Exception as error:  # noqa: BLE001 - every storage has errors of its own
            errors.append(error)
            return False

    with ThreadPoolExecutor(_RIVALS) as pool:
        winners = [rival for rival, won in enumerate(pool.map(create, range(_RIVALS))) if won]
    without = "two starts at the same moment could both take the run. Make sure that only one is started"
    if not winners and any(_advice(error) == _FULL for error in errors):
        raise _CheckFailed(f"{_text(errors[0])}: {_advice(errors[0])}")
    if not winners:
        raise _FeatureMissing(f"refused ({_text(errors[0]) if errors else 'all of them'}): {without}")
    if len(winners) > 1:
        raise _FeatureMissing(f"{len(winners)} of {_RIVALS} created the same file: {without}")
    if trial.run.read(_ONCE) != b"%d" % winners[0]:
        raise _FeatureMissing(f"one that was refused has written all the same: {without}")
    return f"1 of {_RIVALS} at once succeeds"


def _delete(trial: _Trial) -> str:
    trial.run.remove(_SMALL)
    _require(
        trial.run.read(_SMALL) is None and _SMALL not in _listed(trial.run),
        "a deleted file is still there: a half-deleted checkpoint could be read. Use a store with consistent deletes",
    )
    return "gone at once"


_CHECKS: dict[str, Callable[[_Trial], str]] = {
    "write": _write,
    "read after write": _read_after_write,
    "list": _list,
    "ranged read": _ranged_read,
    "up": _upload,
    "down": _download,
    "multipart abort": _multipart_abort,
    "conditional put": _conditional_put,
    "delete": _delete,
}
"""In the order in which they build on one another; each returns what it found."""


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise _CheckFailed(problem)


def _run_check(name: str, check: Callable[[], str], limit: float) -> tuple[str, str]:
    """Return a check's verdict and text. One that hangs is abandoned: a full or stopped store may never answer."""

    def run() -> tuple[str, str]:
        try:
            return "ok", check()
        except _FeatureMissing as missing:
            return "MISSING", str(missing)
        except _CheckFailed as failed:
            return _FAILED, str(failed)
        except Exception as error:
            log.debug("%s", name, exc_info=True)
            return _AWAY if is_away(error) else _FAILED, f"{_text(error)}: {_advice(error)}"

    hangs = f"{_HANGS} {limit:.0f} s. Check AWS_ENDPOINT_URL, the network, and whether the store is full or stopped"
    return within(limit, run, f"probe {name}") or (_FAILED, hangs)


_FULL = "the store is full, or a quota or limit is reached. Make room or raise it"
_ADVICE = {
    "no space|quota|file too large|entitytoolarge|storagefull|insufficient": _FULL,
    "read-only": "it is mounted read-only. Mount it for writing, or give another location",
    "nosuchbucket|bucket does not exist": "the bucket does not exist. Create it, or fix its name or AWS_ENDPOINT_URL",
    "credentials|invalidaccesskeyid|signature|expiredtoken|access key": "the credentials are missing or wrong. Set "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the node's role",
    "access ?denied|forbidden|permission denied|not permitted|403": "this user may not. Allow reading, writing, "
    "listing and deleting under the URL (on S3: GetObject, PutObject, DeleteObject, ListBucket, AbortMultipartUpload, "
    "ListBucketMultipartUploads)",
    "connect|timed out|timeout|resolve|name or service|no route": "the store does not answer. Check AWS_ENDPOINT_URL, "
    "the network and the store itself",
}
"""What the text of an error and of its causes means, and how to fix it; the first pattern that fits."""


def _text(error: BaseException) -> str:
    """Return an error in one line; one without a message, with its cause's."""
    cause = error.__cause__
    return storage_error(cause) if cause is not None and str(error) in ("", "None") else storage_error(error)


def _advice(error: BaseException) -> str:
    text = " ".join(storage_error(each) for each in chain(error)).lower()
    found = (advice for pattern, advice in _ADVICE.items() if re.search(pattern, text))
    return next(found, "the pipeline needs this. Fix the store, or give another one")


def _no_cleanup(found: str) -> str:
    return (
        f"open uploads cannot be cleaned up ({found}): what a killed save had sent stays stored and paid for. Set a "
        "lifecycle rule on the bucket that aborts incomplete multipart uploads, or allow ListBucketMultipartUploads"
    )


def _listed(run: RunDir) -> dict[str, int]:
    return {str(each["name"]).rsplit("/", 1)[-1]: int(each["size"]) for each in run.fs.ls(run.path, detail=True)}


def _folders_to_make(run: RunDir) -> list[Path]:
    """On a local disk: return the folders that do not exist yet, innermost first."""
    folder = Path(run.path)
    return [each for each in (folder, *folder.parents) if not each.exists()] if run.is_local else []


def _clean_up(run: RunDir, made: list[Path]) -> str:
    """Remove everything that was written; return what could not be removed, "" where nothing is left."""
    problems: list[str] = []

    def attempt(action: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 - the other files are removed all the same
            problems.append(_text(error))
            return None

    for name in attempt(_listed, run) or ():
        attempt(run.remove, name)
    if run.is_s3:
        with suppress(Exception):  # a check has reported already that they cannot be listed
            for name, upload in list(open_uploads(run, "")):
                attempt(abort, run, name, upload)
    for folder in made[:1]:
        attempt(folder.rmdir)
    for folder in made[1:]:
        with suppress(OSError):  # another process has put something there
            folder.rmdir()
    return "; ".join(dict.fromkeys(problems))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `probe`."""
    parser.add_argument("url", help="Where runs are to be stored: a path or any fsspec URL. Nothing is left there.")
    parser.add_argument(
        "--megabytes", type=int, default=64, help="Size of the file whose transfer is timed. Default: 64."
    )


def run(arguments: argparse.Namespace) -> int:
    """Probe, print what was found, and return the exit status."""
    text, good = probe(arguments.url, arguments.megabytes)
    print(text)  # noqa: T201 - the output of the command
    # A storage that goes away meanwhile is nobody's mistake.
    away = any(line.startswith(_AWAY) or _HANGS in line for line in text.splitlines())
    return DONE if good else CRASH if away else USER_MUST_CHANGE
