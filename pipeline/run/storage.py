"""Small files on any fsspec storage: whole or absent, created only if absent, replaced only if unchanged.

On a local disk a file is written under another name, forced to the disk and then linked or renamed. On S3 conditional
requests decide between two writers. Any other storage decides as well as its fsspec implementation can.
"""

import errno
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from fsspec.config import conf as fsspec_config
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import UserError, install_command
from pipeline.run import s3_client
from pipeline.run.storage_errors import http_status

UNFINISHED = ".part"
"""Ends the name of a small file on a local disk until it is whole."""

_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
_TAKEN = (409, 412)
_CHANGED = (404, 409, 412)
_UNSUPPORTED = 501
_LONGEST_BETWEEN_COPIES = 300.0
_HTTP, _S3 = ("http", "https"), ("s3", "s3a")


def options(url: str) -> dict[str, Any]:
    """Return what every filesystem of a URL is opened with, beside what the user has configured."""
    # Without a listing cache: another node's files must be seen the moment they are there.
    found: dict[str, Any] = {"use_listings_cache": False}
    protocol = url.partition("://")[0]
    if protocol in _HTTP and not _is_configured("client_kwargs", _HTTP):
        found["client_kwargs"] = {"trust_env": True}  # the proxies of the environment, as other clients take them
    if protocol in _S3 and not _is_configured("config_kwargs", _S3):
        # Over HTTPS botocore ends a body with a checksum by default, which servers other than Amazon's refuse. The
        # environment and the AWS configuration may still ask for it.
        chosen = "request_checksum_calculation"
        if "AWS_REQUEST_CHECKSUM_CALCULATION" not in os.environ and chosen not in s3_client.profile():
            found["config_kwargs"] = {chosen: "when_required"}
    return found


def _is_configured(option: str, protocols: tuple[str, ...]) -> bool:
    return any(option in fsspec_config.get(each, {}) for each in protocols)


def open_filesystem(url: str, name: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL, and the path in it.

    Args:
        url: A local path or any fsspec URL.
        name: What to call it in an error, such as `run_dir='s3://b/x'`.

    Raises:
        UserError: The protocol is unknown, or what it needs is not installed.
    """
    try:
        fs, path = url_to_fs(url, **options(url))
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{name}: {error}. It must be a local path or a URL of a protocol that fsspec knows here; s3:// needs the "
            f"extra: {install_command('s3')}"
        ) from error
    return fs, str(path)


def speaks(fs: Any, protocol: str) -> bool:
    """Return whether a filesystem is of this protocol."""
    return protocol in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def is_local(fs: Any) -> bool:
    """Return whether a filesystem is a disk of this node, or one that is mounted here."""
    return isinstance(fs, LocalFileSystem)


def read(fs: Any, path: str) -> bytes | None:
    """Return the bytes of a file, or None where there is none."""
    try:
        return cast("bytes", fs.cat_file(path))
    except FileNotFoundError:
        return None


def write(fs: Any, path: str, data: bytes) -> None:
    """Write a small file, whole and durable, in the place of any other."""
    if is_local(fs):
        write_local(Path(path), data)
    else:
        fs.pipe_file(path, data)


def write_local(path: Path, data: bytes) -> None:
    """Write a small file on a local disk, whole and durable, in the place of any other."""
    _place(path, lambda file: file.write(data), os.replace)


def place(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file of any size on a local disk, whole and durable, in the place of any other.

    Args:
        path: Where.
        fill: Writes the bytes into the open file that it is given.
    """
    _place(path, fill, os.replace)


def put(fs: Any, path: str, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file of any size, whole, in the place of any other; on a local disk it is durable then.

    Args:
        fs: Of the file.
        path: In there.
        fill: Writes the bytes into the open file that it is given.
    """
    if is_local(fs):  # a kill in the middle must not cost the file that was there
        place(Path(path), fill)
        return
    file = fs.open(path, "wb")
    try:
        fill(file)
    except BaseException:
        file.discard()
        with suppress(AttributeError):  # a closed one is not flushed, which would fail or leave the half
            file.closed = True
        raise
    file.close()


def create(fs: Any, path: str, data: bytes) -> bool:
    """Write a small file, whole and durable; return False and leave it alone where there is one of that name.

    Of several that create it at once one succeeds on a local disk and on S3; elsewhere as far as the storage can.
    """
    if is_local(fs):
        return _place(Path(path), lambda file: file.write(data), _link)
    if not speaks(fs, "s3") and _exists(fs, path):  # not every implementation knows the mode below
        return False
    try:
        fs.pipe_file(path, data, mode="create")
    except Exception as error:
        if isinstance(error, FileExistsError) or http_status(error) in _TAKEN:
            return False
        if http_status(error) != _UNSUPPORTED:
            raise
    else:
        return True
    if _exists(fs, path):
        return False
    fs.pipe_file(path, data)
    return True


def replace(fs: Any, path: str, data: bytes, etag: str) -> str | None:
    """On S3: replace a small file that still has this ETag; return its new one, or None where it has changed.

    Raises:
        NotImplementedError: The store has no conditional writes.
    """
    for quoted in (etag, etag.strip('"')):  # Ceph compares with what has no quotes, others want them
        try:
            return str(fs.pipe_file(path, data, IfMatch=quoted)["ETag"])
        except Exception as error:
            if http_status(error) == _UNSUPPORTED:
                raise NotImplementedError from error
            if not isinstance(error, FileExistsError) and http_status(error) not in _CHANGED:
                raise
    return None


def _exists(fs: Any, path: str) -> bool:
    # Not `fs.exists`, which takes any error for an absent file.
    try:
        fs.info(path)
    except FileNotFoundError:
        return False
    return True


def seconds_between_copies(lasted: float, least: float) -> float:
    """Return how far apart copies of a log to an object store are: each one adds files that a reader must list.

    Args:
        lasted: Seconds for which it has been written.
        least: Seconds between the first copies; a hundredth of `lasted` later on, and never more than five minutes.
    """
    return min(max(least, lasted / 100), _LONGEST_BETWEEN_COPIES)


def make_folder(folder: Path) -> None:
    """On a local disk: create a folder and its parents, and make them durable."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    os.makedirs(folder, exist_ok=True)
    for each in missing:
        sync(each.parent)


def sync(path: Path) -> None:
    """On a local disk: force a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _place(path: Path, fill: Callable[[BinaryIO], object], put: Callable[[Path, Path], None]) -> bool:
    """Put a file in its place so that it is whole at every moment, also of a power failure."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}{UNFINISHED}")
    make_folder(path.parent)
    try:
        with part.open("xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        try:
            put(part, path)
        except FileExistsError:
            return False
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
    sync(path.parent)
    return True


def _link(part: Path, path: Path) -> None:
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with path.open("xb"):  # without hard links: claim the name, then fill it at once
            os.replace(part, path)
