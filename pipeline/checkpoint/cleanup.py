"""Remove what killed saves left behind: `.ckpt` files without a commit record, and open multipart uploads.

Only under the names of this run's own checkpoints, and never a file that has a record, even a damaged one, or whose
step an attempt reports as committed. Where the newest record is missing, or many are, nothing is removed.
"""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.checkpoint.commit import read_record
from pipeline.run.attempts import reported_commits
from pipeline.run.run_dir import CHECKPOINTS, RunDir
from pipeline.run.storage import UNFINISHED
from pipeline.run.storage_errors import storage_error

log = logging.getLogger(__name__)


def remove_leftovers(run: RunDir, spare: str | None = None) -> list[str]:
    """Remove what uncommitted saves have left; an error of the storage is logged, and the next start retries.

    Only the run's writer may call this, while it is not saving: then any file without a commit record is an orphan.

    Args:
        run: The run directory.
        spare: The URL of a checkpoint that the user named, which is never removed.

    Returns:
        The names of what was removed, as in the run directory.
    """
    removed: list[str] = []
    for of_kind in (partial(_files, spare=spare), _uploads):
        try:
            of_kind(run, removed)
        except Exception as error:  # noqa: BLE001 - every storage has errors of its own
            log.warning("leftovers of earlier saves in %s were not removed: %s", run, storage_error(error))
    if removed:
        log.info("removed leftovers of unfinished saves: %s", ", ".join(removed))
    return removed


def open_uploads(run: RunDir, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield the name and id of each open multipart upload: they are invisible, and cost storage.

    Args:
        run: A run directory on S3.
        prefix: What the names begin with.
    """
    bucket, folder = run.object_of("")
    marker: dict[str, str] = {}
    while True:
        # Neither obstore nor fsspec can list them by prefix.
        page = run.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{folder}{prefix}", **marker)
        for upload in page.get("Uploads", []):
            if str(upload["Key"]).startswith(f"{folder}{prefix}"):
                yield str(upload["Key"])[len(folder) :], str(upload["UploadId"])
        following = {"KeyMarker": page.get("NextKeyMarker"), "UploadIdMarker": page.get("NextUploadIdMarker")}
        if not page.get("IsTruncated") or not following["KeyMarker"] or following == marker:
            return
        marker = {name: value for name, value in following.items() if value}


def abort(run: RunDir, name: str, upload: str) -> None:
    """Abort an open upload, which frees what it had stored."""
    bucket, key = run.object_of(name)
    run.fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload)


def _files(run: RunDir, removed: list[str], spare: str | None) -> None:
    """Remove each `.ckpt` that has no record; warn of torn records, down to the newest that is not."""
    if run.is_local:
        for part in sorted(Path(run.path, CHECKPOINTS).glob(f"step-*{UNFINISHED}")):
            _try(part.unlink, f"{CHECKPOINTS}/{part.name}", removed)
    found = run.steps()
    spared = None if spare is None else RunDir(spare).url
    for step in _orphans(run, found):
        name = RunDir.checkpoint(step)
        if run.url_of(name) != spared:
            _try(partial(run.remove, name), name, removed)
    for step in sorted(found["json"].keys() & found["ckpt"].keys(), reverse=True):
        if read_record(run, step) is not None:
            return  # a crash tears the newest; reading all of them would take longer the older the run is
        log.warning("step %d has a file, but its commit record is torn or foreign: both are kept for inspection", step)


def _orphans(run: RunDir, found: dict[str, dict[int, int]]) -> list[int]:
    """Return the steps whose file was never committed, as far as is known."""
    orphans = sorted(found["ckpt"].keys() - found["json"].keys())
    if not orphans:
        return []
    reported, attempts = reported_commits(run), len(run.attempts())
    kept = [step for step in orphans if step in reported]
    # An attempt that is killed leaves one save unfinished, and one deletion.
    if len(orphans) > 2 * max(attempts, 1) or max(reported, default=0) > max(found["json"], default=0):
        kept = orphans
    if kept:
        log.warning(
            "%d checkpoint files of %s have no commit record (step %s) and are kept, for their steps may have been "
            "committed: restore the records, or remove the files",
            len(kept),
            run,
            ", ".join(map(str, kept)),
        )
    return [step for step in orphans if step not in kept]


def _uploads(run: RunDir, removed: list[str]) -> None:
    """Abort the uploads of checkpoints that were never completed."""
    if not run.is_s3:
        return
    for name, upload in list(open_uploads(run, f"{CHECKPOINTS}/step-")):
        if RunDir.checkpoint_step(name) is not None:
            _try(partial(abort, run, name, upload), f"{name} (an open upload)", removed)


def _try(remove: Callable[[], Any], name: str, removed: list[str]) -> None:
    try:
        remove()
    except FileNotFoundError:
        return
    except Exception as error:  # noqa: BLE001 - one that cannot be removed does not stop the others
        log.warning("%s was not removed: %s", name, storage_error(error))
    else:
        removed.append(name)
