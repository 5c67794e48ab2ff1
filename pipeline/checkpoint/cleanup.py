"""What a killed save left behind is removed by the next start: `.ckpt` files without a commit record, open uploads.

Only under the names of this run's own checkpoints, and never what might be evidence.
"""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.checkpoint.commit import read_record
from pipeline.run.run_dir import CHECKPOINTS, RunDir
from pipeline.run.storage import UNFINISHED
from pipeline.run.storage_errors import storage_error

log = logging.getLogger(__name__)


def sweep(run: RunDir, spare: str | None = None) -> list[str]:
    """Remove what uncommitted saves have left; an error of the storage is logged, and the next start tries again.

    To be called by the one process that may write to the run, while no save of its own is under way: then whatever
    has no commit record is an orphan.

    Args:
        run: The run directory.
        spare: The URL of a checkpoint that the user named, which stays whatever it is.

    Returns:
        The names of what was removed, as they stand in the run directory.
    """
    swept: list[str] = []
    for of_kind in (partial(_files, spare=spare), _uploads):
        try:
            of_kind(run, swept)
        except Exception as error:  # noqa: BLE001 - every storage has errors of its own
            log.warning("what earlier saves left in %s is not swept: %s", run, storage_error(error))
    if swept:
        log.info("swept what unfinished saves had left: %s", ", ".join(swept))
    return swept


def open_uploads(run: RunDir, beginning: str) -> Iterator[tuple[str, str]]:
    """The multipart uploads that are open, which are stored, unseen and paid: each one's name, and its id.

    Args:
        run: A run directory on S3.
        beginning: What the names begin with.
    """
    bucket, folder = run.object_of("")
    marker: dict[str, str] = {}
    while True:
        # Neither obstore nor fsspec can list them by prefix.
        page = run.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{folder}{beginning}", **marker)
        for upload in page.get("Uploads", []):
            if str(upload["Key"]).startswith(f"{folder}{beginning}"):
                yield str(upload["Key"])[len(folder) :], str(upload["UploadId"])
        following = {"KeyMarker": page.get("NextKeyMarker"), "UploadIdMarker": page.get("NextUploadIdMarker")}
        if not page.get("IsTruncated") or not following["KeyMarker"] or following == marker:
            return
        marker = {name: value for name, value in following.items() if value}


def abort(run: RunDir, name: str, upload: str) -> None:
    """End an open upload and free what it had stored."""
    bucket, key = run.object_of(name)
    run.fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)


def _files(run: RunDir, swept: list[str], spare: str | None) -> None:
    """Remove each `.ckpt` that has no record; say which records are torn, down to the newest that is not."""
    if run.is_local:
        for part in sorted(Path(run.path, CHECKPOINTS).glob(f"step-*{UNFINISHED}")):
            _try(part.unlink, f"{CHECKPOINTS}/{part.name}", swept)
    found = run.steps()
    spared = None if spare is None else RunDir(spare).url
    for step in sorted(found["ckpt"].keys() - found["json"].keys()):
        name = RunDir.checkpoint(step)
        if run.url_of(name) != spared:
            _try(partial(run.remove, name), name, swept)
    for step in sorted(found["json"].keys() & found["ckpt"].keys(), reverse=True):
        if read_record(run, step) is not None:
            return  # a crash tears the newest; reading all records would take as long as the run is old
        log.warning(
            "step %d has a file, but its commit record is torn or foreign: both are left for you to look at", step
        )


def _uploads(run: RunDir, swept: list[str]) -> None:
    """Abort the uploads of checkpoints that were never completed."""
    if not run.is_s3:
        return
    for name, upload in list(open_uploads(run, f"{CHECKPOINTS}/step-")):
        if RunDir.checkpoint_step(name) is not None:
            _try(partial(abort, run, name, upload), f"{name} (an open upload)", swept)


def _try(remove: Callable[[], Any], name: str, swept: list[str]) -> None:
    try:
        remove()
    except FileNotFoundError:
        return
    except Exception as error:  # noqa: BLE001 - one that cannot be removed does not keep the others
        log.warning("%s is not swept: %s", name, storage_error(error))
    else:
        swept.append(name)
