"""`python -m pipeline probe <url>`: whether a store can carry a run, before any node is paid for.

Each check is a line: `ok`; `MISSING`, for what the store does not have and the pipeline can do without; `FAILED`, for
what it cannot do without. What was written is removed again, also when a check fails.
"""

import argparse
import errno
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.checkpoint.cleanup import abort, open_uploads
from pipeline.checkpoint.transfer import PART, open_ranges, open_writer
from pipeline.errors import DONE, USER_MUST_CHANGE, UserError, chain
from pipeline.process.timeout import within
from pipeline.run.run_dir import RunDir
from pipeline.run.storage_errors import storage_error

log = logging.getLogger(__name__)

_SMALL = 1 << 20
_HANGS = "no answer within"
_AT_ONCE = 4
_RIVALS = 8

_SMALL_NAME = "small"
_LARGE_NAME = "large"
_OPEN_NAME = "open"
_ONCE_NAME = "once"


class _Failed(Exception):
    """What the store did instead, in words."""


class _Missing(Exception):
    """What the store does not have, and what that means."""


def probe(url: str, megabytes: int = 64, limit: float = 60.0) -> tuple[str, bool]:
    """Try on a fresh folder all that a run needs of its storage.

    Args:
        url: Where runs are to lie: a local path or any fsspec URL.
        megabytes: Size of the file whose transfer is timed.
        limit: Seconds after which a check that hangs has failed.

    Returns:
        A text to read, and whether the store has all that is needed.

    Raises:
        UserError: The URL cannot be one, or there is nothing to measure.
    """
    if megabytes < 1:
        raise UserError(f"megabytes={megabytes}: allowed are 1 and more")
    base = RunDir(url)
    run = RunDir(f"{url if url.endswith('/') else url + '/'}probe-{uuid.uuid4().hex[:12]}")
    made = _folders_to_make(run)
    checks = _Checks(run, megabytes << 20)
    results: list[tuple[str, str, str]] = []
    try:
        for name, check in checks.all():
            # A large transfer may take long; slower than 1 MB/s is as good as none.
            seconds = limit + (megabytes if name in ("up", "down") else 0)
            results.append((*_tried(name, check, seconds), name))
            hangs = results[-1][1].startswith(_HANGS)
            if results[-1][0] == "FAILED" and (name == "write" or hangs):
                later = f"; should the store wake up later, remove {run} by hand" if hangs else ""
                results.append(("", f"what comes after it was not tried{later}", ""))
                break
    finally:
        verdict, left = _tried("clean up", lambda: _clean_up(run, made), limit)
    if (verdict == "FAILED" or left) and len(results) > 2:
        results.append(("FAILED", f"{run} is left, remove it by hand: {left}", "clean up"))
    good = not any(verdict == "FAILED" for verdict, _, _ in results)
    lines = [f"{verdict:<8}{name:<18}{words}".rstrip() for verdict, words, name in results]
    end = "this store can carry a run" if good else "this store cannot carry a run yet: mend what FAILED"
    return "\n".join([f"probe of {base}", "", *lines, "", end]), good


class _Checks:
    """The checks, in the order in which they build on one another.

    Args:
        run: A fresh folder.
        size: Bytes of the large file.
    """

    def __init__(self, run: RunDir, size: int) -> None:
        self.run = run
        self.size = size
        self.small = os.urandom(_SMALL)
        self.part = os.urandom(min(PART, size))

    def all(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Each check with its name; it returns what it found in words."""
        yield "write", self.write
        yield "read after write", self.read
        yield "list", self.list
        yield "ranged read", self.ranges
        yield "up", self.up
        yield "down", self.down
        yield "multipart abort", self.multipart_abort
        yield "conditional put", self.conditional_put
        yield "delete", self.delete

    def write(self) -> str:
        """A small file, as a commit record is."""
        # Some stores remember for a while that a file was not there.
        if self.run.read(_SMALL_NAME) is not None:
            raise _Failed("a file in a fresh folder is there before it was written")
        self.run.write(_SMALL_NAME, self.small)
        return f"{_SMALL} bytes"

    def read(self) -> str:
        """A write is seen at once, the second one too."""
        words = "a commit would not be seen by the other nodes. Use a store with read-after-write consistency"
        if self.run.read(_SMALL_NAME) != self.small:
            raise _Failed(f"what was written is not what is read right after: {words}")
        self.small = os.urandom(_SMALL)
        self.run.write(_SMALL_NAME, self.small)
        if self.run.read(_SMALL_NAME) != self.small:
            raise _Failed(f"a file that was written again is read as it was before: {words}")
        return "seen at once, also when written again"

    def list(self) -> str:
        """The listing has what was written."""
        sizes = _listed(self.run)
        if sizes.get(_SMALL_NAME) != _SMALL:
            raise _Failed(
                f"a file of {_SMALL} bytes is listed as {sizes.get(_SMALL_NAME, 'not there')}: a resume would not find "
                "the newest checkpoint. Use a store with consistent listings"
            )
        return "complete right after the write, with sizes"

    def ranges(self) -> str:
        """Any range of bytes can be read by itself."""
        start, end = _SMALL // 3, _SMALL // 3 + 4321
        if bytes(open_ranges(self.run, _SMALL_NAME)(start, end)) != self.small[start:end]:
            raise _Failed("a range of bytes is read as other bytes: checkpoints cannot be downloaded in parts")
        return "exact"

    def up(self) -> str:
        """A checkpoint's way to the store."""
        began = time.monotonic()
        writer = open_writer(self.run, _LARGE_NAME)
        try:
            for start in range(0, self.size, len(self.part)):
                writer.write(self.part[: self.size - start])
        finally:
            writer.close()
        self.run.sync(_LARGE_NAME)
        seconds = time.monotonic() - began
        stored = self.run.size(_LARGE_NAME)
        if stored != self.size:
            raise _Failed(f"wrote {self.size} bytes, the store reports {stored}")
        parts = f" in parts of {PART >> 20} MB" if self.run.is_s3 and self.size > PART else ""
        return f"{self.size / 1e6 / seconds:.0f} MB/s ({self.size} bytes{parts})"

    def down(self) -> str:
        """And back, several ranges at once."""
        if self.run.size(_LARGE_NAME) != self.size:
            raise _Failed("not tried, since nothing large came up")
        get, length = open_ranges(self.run, _LARGE_NAME), len(self.part)

        def is_same(start: int) -> bool:
            end = min(start + length, self.size)
            return bytes(get(start, end)) == self.part[: end - start]

        began = time.monotonic()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            same = all(pool.map(is_same, range(0, self.size, length)))
        seconds = time.monotonic() - began
        if not same:
            raise _Failed("other bytes came down than went up: do not trust this store with a checkpoint")
        cached = ", perhaps from this machine's memory" if self.run.is_local else ""
        return f"{self.size / 1e6 / seconds:.0f} MB/s{cached}"

    def multipart_abort(self) -> str:
        """What a killed save leaves can be found and removed."""
        if not self.run.is_s3:
            return "not needed: an unfinished file is seen here, and the next start sweeps it"
        bucket, key = self.run.object_of(_OPEN_NAME)
        place = {"Bucket": bucket, "Key": key}
        upload = str(self.run.fs.call_s3("create_multipart_upload", **place)["UploadId"])
        self.run.fs.call_s3("upload_part", **place, UploadId=upload, PartNumber=1, Body=b"x")
        if self.run.size(_OPEN_NAME) is not None:
            raise _Failed("a file is there before its upload is completed: a torn checkpoint would look whole")
        try:
            before = [each for _, each in open_uploads(self.run, _OPEN_NAME)]
            abort(self.run, _OPEN_NAME, upload)
            after = [each for _, each in open_uploads(self.run, _OPEN_NAME)]
        except Exception as error:
            with suppress(Exception):
                abort(self.run, _OPEN_NAME, upload)
            raise _Missing(_unswept(_said(error))) from error
        if upload not in before or upload in after:
            raise _Missing(
                _unswept("an aborted one is still open" if upload in before else "an open one is not listed")
            )
        if self.run.size(_OPEN_NAME) is not None:
            raise _Failed("an aborted upload has left a file: a torn checkpoint would look whole")
        return "an open upload is listed, and gone once aborted"

    def conditional_put(self) -> str:
        """Of several that create the same file at once, one succeeds."""
        errors: list[Exception] = []

        def create(rival: int) -> bool:
            try:
                if self.run.is_local:
                    with open(f"{self.run.path}/{_ONCE_NAME}", "xb") as file:
                        file.write(b"%d" % rival)
                else:
                    self.run.fs.pipe_file(f"{self.run.path}/{_ONCE_NAME}", b"%d" % rival, mode="create")
            except Exception as error:  # noqa: BLE001 - every storage refuses in its own words
                errors.append(error)
                return False
            return True

        with ThreadPoolExecutor(_RIVALS) as pool:
            winners = [rival for rival, won in enumerate(pool.map(create, range(_RIVALS))) if won]
        without = (
            "two starts at the same moment could both believe that the run is theirs. See to it that only one runs"
        )
        if not winners and any(_is_full(error) for error in errors):
            raise _Failed(f"{_said(errors[0])}: {_advice(errors[0])}")
        if not winners:
            raise _Missing(f"refused ({_said(errors[0])}): {without}")
        if len(winners) > 1:
            raise _Missing(f"{len(winners)} of {_RIVALS} created the same file: {without}")
        if self.run.read(_ONCE_NAME) != b"%d" % winners[0]:
            raise _Missing(f"one that was refused has written all the same: {without}")
        return f"1 of {_RIVALS} at once succeeds"

    def delete(self) -> str:
        """What is deleted is gone at once."""
        self.run.remove(_SMALL_NAME)
        if self.run.read(_SMALL_NAME) is not None or _SMALL_NAME in _listed(self.run):
            raise _Failed(
                "a deleted file is still there: a checkpoint could be taken that is half deleted. Use a store with "
                "consistent deletes"
            )
        return "gone at once"


def _tried(name: str, check: Callable[[], str], limit: float) -> tuple[str, str]:
    """A check's verdict and words. One that hangs is left behind: a full or stopped store may never answer."""

    def run() -> tuple[str, str]:
        try:
            return "ok", check()
        except _Missing as missing:
            return "MISSING", str(missing)
        except _Failed as failed:
            return "FAILED", str(failed)
        except Exception as error:
            log.debug("%s", name, exc_info=True)
            return "FAILED", f"{_said(error)}: {_advice(error)}"

    words = f"{_HANGS} {limit:.0f} s. Look at AWS_ENDPOINT_URL, the network, and whether the store is full or stopped"
    return within(limit, run, f"probe {name}") or ("FAILED", words)


_ADVICE: tuple[tuple[tuple[str, ...], tuple[int, ...], str], ...] = (
    (
        ("no space", "quota", "file too large", "entitytoolarge", "storagefull", "insufficient"),
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        "the store is full, or a quota or limit is reached. Make room or raise it",
    ),
    (("read-only",), (errno.EROFS,), "it is mounted read-only. Mount it for writing, or give another place"),
    (
        ("nosuchbucket", "bucket does not exist"),
        (),
        "the bucket does not exist. Create it, or mend its name or AWS_ENDPOINT_URL",
    ),
    (
        ("credentials", "invalidaccesskeyid", "signature", "expiredtoken", "access key"),
        (),
        "the credentials are missing or wrong. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the node's role",
    ),
    (
        ("accessdenied", "access denied", "forbidden", "permission denied", "not permitted", "403"),
        (errno.EACCES, errno.EPERM),
        "this user may not. Allow reading, writing, listing and deleting under the URL (on S3: GetObject, PutObject, "
        "DeleteObject, ListBucket, AbortMultipartUpload, ListBucketMultipartUploads)",
    ),
    (
        ("connect", "timed out", "timeout", "resolve", "name or service"),
        (errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH),
        "the store does not answer. Look at AWS_ENDPOINT_URL, the network and the store itself",
    ),
)
"""What an error's text or number tells, and how to mend it; the first that fits."""


def _said(error: BaseException) -> str:
    """An error in one line; where it says nothing by itself, with what lies under it."""
    cause = error.__cause__
    return storage_error(cause) if cause is not None and str(error) in ("", "None") else storage_error(error)


def _advice(error: BaseException) -> str:
    """What an error of any storage means, and how to mend it."""
    causes = chain(error)
    text = " ".join(storage_error(each) for each in causes).lower()
    numbers = {each.errno for each in causes if isinstance(each, OSError)}
    for words, errors, advice in _ADVICE:
        if any(word in text for word in words) or numbers.intersection(errors):
            return advice
    return "the pipeline needs this. Mend the store, or give another one"


def _is_full(error: BaseException) -> bool:
    return _advice(error) == _ADVICE[0][2]


def _unswept(found: str) -> str:
    return (
        f"open uploads cannot be swept ({found}): what a killed save had sent stays stored and paid for. Set a "
        "lifecycle rule on the bucket that aborts incomplete multipart uploads, or allow ListBucketMultipartUploads"
    )


def _listed(run: RunDir) -> dict[str, int]:
    return {str(each["name"]).rsplit("/", 1)[-1]: int(each["size"]) for each in run.fs.ls(run.path, detail=True)}


def _folders_to_make(run: RunDir) -> list[Path]:
    """On a local disk: the folders that do not exist yet, innermost first."""
    if not run.is_local:
        return []
    folder = Path(run.path)
    return [each for each in (folder, *folder.parents) if not each.exists()]


def _clean_up(run: RunDir, made: list[Path]) -> str:
    """Remove all that was written.

    Returns:
        What could not be removed, in words; "" where nothing is left.
    """
    problems: list[str] = []

    @contextmanager
    def noted() -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, the next name is removed all the same
            problems.append(_said(error))

    with noted():
        for name in _listed(run):
            with noted():
                run.remove(name)
    if run.is_s3:
        # A store that cannot list them has been found out already.
        with suppress(Exception):
            for name, upload in list(open_uploads(run, "")):
                with noted():
                    abort(run, name, upload)
    for folder in made[:1]:
        with noted():
            folder.rmdir()
    for folder in made[1:]:
        with suppress(OSError):  # somebody else has put something there meanwhile
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
    return DONE if good else USER_MUST_CHANGE
