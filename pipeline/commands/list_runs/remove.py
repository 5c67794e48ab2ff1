"""`python -m pipeline runs rm`: delete whole run directories, never one that is written to, and nothing else.

The run's lease is held meanwhile, so that no fit starts in it. What says how it stands goes first, then the commit
records, the oldest first, then everything else, the checkpoints' bytes last: what an interrupted deletion leaves has no
known end, its newest commit record is good or there is none, and the same command deletes the rest of it.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.cleanup import abort, open_uploads
from pipeline.checkpoint.run_records import summaries
from pipeline.checkpoint.run_summary import RunCondition, RunSummary
from pipeline.commands.list_runs.fields import ago, size, text
from pipeline.errors import CRASH, DONE, StorageAway, UserError
from pipeline.process.output import print_line
from pipeline.run.lease import Lease, launch_id
from pipeline.run.run_dir import LEASE, NEWEST, RunDir
from pipeline.run.run_listing import RunListing, RunTree
from pipeline.run.storage_errors import raise_for_user, storage_error

log = logging.getLogger(__name__)

_AT_ONCE = 1000
"""Objects that S3 deletes by one request, at most."""


@dataclass(frozen=True)
class _Doomed:
    """A run that is to be deleted.

    Attributes:
        listing: All that lies in it.
        summary: What it is.
        nested: The names of other runs that lie within, and stay.
    """

    listing: RunListing
    summary: RunSummary
    nested: Sequence[str]

    def __str__(self) -> str:
        run = self.summary
        written = "" if run.updated is None else f", written {ago(run.updated)}"
        stay = f"; the runs within it stay: {', '.join(map(text, self.nested))}" if self.nested else ""
        count = f"{len(self.listing.files)} files, {run.checkpoints} checkpoints, {size(run.bytes)}"
        return f"{text(run.label)}  {run.state}  {count}{written}{stay}"


def remove(arguments: argparse.Namespace) -> int:
    """Say what would be deleted, ask, delete, and return the exit status.

    Raises:
        UserError: A URL is no run directory, or a run is being written to, or nobody can be asked. Nothing is deleted.
        StorageAway: The storage does not answer.
    """
    doomed = list({each.listing.url: each for each in map(_doomed, arguments.url)}.values())
    running = [each.summary.label for each in doomed if each.summary.state is RunCondition.RUNNING]
    if running:
        raise UserError(*(f"url={label!r} is running: stop it first. Nothing was deleted" for label in running))
    for each in doomed:
        print_line(f"to be deleted: {each}", sys.stdout)
    total = size(sum(each.summary.bytes for each in doomed))
    what = f"{len(doomed)} run{'s' * (len(doomed) > 1)}, {total}, with whatever else lies in their directories"
    if not arguments.yes and not _confirmed(what):
        print_line("nothing was deleted", sys.stdout)
        return DONE
    gone = [_delete(each) for each in doomed]
    return DONE if all(gone) else CRASH


def _doomed(url: str) -> _Doomed:
    """Return what a URL names.

    Raises:
        UserError: It is no run directory.
    """
    tree = RunTree(url)
    run = RunDir(url)
    if run.is_local and Path(run.path).is_symlink():
        raise UserError(f"url={url!r} is a link: name the run directory itself, {os.path.realpath(run.path)!r}")
    listings = tree.listings()
    own = [each for each in listings if each.url == run.url]
    within = [each.label for each in listings if each.url != run.url]
    if not own or not any(_is_evidence(name) for name in own[0].files):
        more = f"; there are {len(within)} beneath it, name those" if within else ""
        raise UserError(
            f"url={url!r} is not a run directory: it holds no attempts and no checkpoints of this program{more}. "
            "Nothing was deleted"
        )
    return _Doomed(own[0], summaries(tree, own)[0], within)


def _is_evidence(name: str) -> bool:
    """Return whether a file shows that this program has trained here; a fit.yaml alone may be anybody's."""
    return RunDir.attempt_number(name) is not None or RunDir.checkpoint_file(name) is not None


def _confirmed(what: str) -> bool:
    """Ask a person.

    Raises:
        UserError: There is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise UserError(f"{what}: standard input is no terminal, so nobody can be asked. Give --yes to delete")
    print_line(f"delete {what}? [y/N] ", sys.stdout)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _delete(doomed: _Doomed) -> bool:
    """Delete a run, and return whether all of it is gone; why not, the log says.

    Raises:
        UserError: Another launch has begun to write to it.
        StorageAway: The storage does not answer.
    """
    run = RunDir(doomed.listing.url)
    lease = Lease.take(run, f"rm {launch_id()}")
    try:
        for names in _in_order(doomed.listing.files):
            _remove_files(run, names)
        for name, upload in list(open_uploads(run, "")) if run.is_s3 and not doomed.nested else ():
            abort(run, name, upload)
    except (StorageAway, UserError):
        raise
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        log.warning("%s is not deleted as a whole: %s", doomed.summary.label, storage_error(error))
        return False
    finally:
        lease.release()
    if run.is_local:
        _remove_folders(Path(run.path), doomed.nested)
    return _is_gone(doomed)


def _in_order(files: Iterable[str]) -> list[list[str]]:
    """Return the names of a run's files as they are deleted, in groups that are gone before the next one begins."""
    groups: list[list[str]] = [[], [], [], []]
    for name in sorted(files, key=lambda name: (name != NEWEST, name)):
        checkpoint = RunDir.checkpoint_file(name)
        if name == NEWEST or RunDir.attempt_number(name) is not None:
            groups[0].append(name)
        elif checkpoint is not None:
            groups[1 if checkpoint[1] == "json" else 3].append(name)
        elif name != LEASE:
            groups[2].append(name)
    return groups


def _remove_files(run: RunDir, names: Sequence[str]) -> None:
    if run.is_s3:
        for start in range(0, len(names), _AT_ONCE):
            _remove_objects(run, names[start : start + _AT_ONCE])
        return
    for name in names:
        with suppress(FileNotFoundError):
            run.remove(name)


def _remove_objects(run: RunDir, names: Sequence[str]) -> None:
    bucket, folder = run.object_of("")
    keys = [{"Key": f"{folder}{name}"} for name in names]
    answer = run.fs.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
    if failed := answer.get("Errors"):
        raise PermissionError(f"{len(failed)} objects, such as {failed[0].get('Key')}: {failed[0].get('Message')}")


def _remove_folders(folder: Path, nested: Sequence[str]) -> None:
    """Remove the folders that are empty now, and links to folders; what lies in another run stays."""
    stay = {os.path.abspath(each) for each in nested}
    for path, names, _ in os.walk(folder, topdown=False):
        if any(path == each or path.startswith(f"{each}/") for each in stay):
            continue
        for link in (Path(path, name) for name in names if Path(path, name).is_symlink()):
            link.unlink(missing_ok=True)
        with suppress(OSError):
            os.rmdir(path)


def _is_gone(doomed: _Doomed) -> bool:
    try:
        left = [each for each in RunTree(doomed.listing.url).listings() if each.url == doomed.listing.url]
    except UserError:
        left = []  # not even the folder
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        raise_for_user(error, f"{doomed.summary.label} cannot be read", "Fix this user's permissions there")
    if left:
        log.warning("%s was written to meanwhile: %d files are left", doomed.summary.label, len(left[0].files))
        return False
    print_line(f"deleted: {doomed.summary.label}", sys.stdout)
    return True
