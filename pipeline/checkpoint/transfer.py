"""Move large files to and from a run's storage, without the interpreter lock where the storage allows it.

On S3 the bytes go through obstore (Rust), which needs a quarter of s3fs's CPU time and none of it under the lock that
training holds; every other protocol goes through fsspec.

An obstore client hangs in a process that was forked from one that had used it. So it is created only here, for one
file, in the process that saves or loads, never in a loader worker, and is not kept.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from pipeline.run.run_dir import RunDir

PART = 16 << 20
"""Bytes of a part, up and down."""

_CORES_PER_PART = 4
_MOST_AT_ONCE = 8


class ObjectWriter(Protocol):
    """A file that is being written; it exists once it is closed."""

    def write(self, data: Any) -> Any:
        """Write bytes, or anything that shares its memory as bytes."""

    def close(self) -> Any:
        """Finish it.

        Raises:
            Exception: Any error of the storage; the file does not exist then.
        """


def open_writer(run: RunDir, name: str) -> ObjectWriter:
    """Open a new file for streaming bytes into it, in parts."""
    store = _object_store(run)
    if store is None:
        if run.is_local:  # a stopped process that wakes up later writes into its own file, which has no name any more
            Path(run.path, name).unlink(missing_ok=True)
        writer: ObjectWriter = run.open_write(name)
        return writer
    import obstore  # noqa: PLC0415 - part of the extra for S3

    # Uploading takes cores from training: on two of them, one part at a time cost training half of what four did (a
    # fifth with the server on the other core), and the upload two fifths of its speed.
    at_once = min(max(len(os.sched_getaffinity(0)) // _CORES_PER_PART, 1), _MOST_AT_ONCE)
    opened: ObjectWriter = obstore.open_writer(store, run.object_of(name)[1], buffer_size=PART, max_concurrency=at_once)
    return opened


def open_ranges(run: RunDir, name: str) -> Callable[[int, int], Any]:
    """Return a function of (start, end) in bytes that reads a range of a file, safe to call from several threads.

    It returns the bytes, or what shares its memory as bytes.
    """
    store = _object_store(run)
    if store is None:
        path = f"{run.path}/{name}"
        return lambda start, end: run.fs.cat_file(path, start=start, end=end)
    import obstore  # noqa: PLC0415

    _, key = run.object_of(name)
    return lambda start, end: obstore.get_range(store, key, start=start, end=end)


def _object_store(run: RunDir) -> Any:
    """Return an obstore client for a run on S3 that reaches it as s3fs does, or None where that is not certain."""
    if not run.is_s3:
        return None
    try:
        import botocore.session  # noqa: PLC0415 - comes with s3fs
        from obstore.store import S3Store  # noqa: PLC0415
    except ImportError:
        return None
    make: Any = S3Store
    options = dict(run.fs.storage_options)
    options.pop("use_listings_cache", None)
    session = botocore.session.Session()
    credentials = session.get_credentials()
    if options or credentials is None:  # set up by fsspec's own configuration, which only s3fs reads
        return None
    # Where botocore, and so s3fs, would look: the environment, then the user's configuration.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = endpoint or session.get_scoped_config().get("endpoint_url")
    region = session.get_config_variable("region") or "us-east-1"

    def provide() -> dict[str, Any]:
        now = credentials.get_frozen_credentials()
        found = {"access_key_id": now.access_key, "secret_access_key": now.secret_key, "token": now.token}
        # botocore renews those of a role by itself: ask it again soon.
        return {**found, "expires_at": datetime.now(UTC) + timedelta(minutes=5)}

    return make(
        run.object_of("")[0],
        region=region,
        credential_provider=provide,
        client_options={"allow_http": bool(endpoint and endpoint.startswith("http:")), "timeout": "300s"},
        # Hosts other than Amazon's seldom have a host name for each bucket.
        **({"endpoint": endpoint, "virtual_hosted_style_request": False} if endpoint else {}),
    )
