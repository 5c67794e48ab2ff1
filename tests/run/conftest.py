"""Leases that are given back, on the storages that processes share."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.run.lease import Lease
from pipeline.run.run_dir import RunDir


@pytest.fixture(params=["folder", "s3"])
def shared(request: pytest.FixtureRequest, tmp_path: Path, s3: str) -> str:
    """A fresh URL on each kind of storage that processes share."""
    return str(tmp_path / "run") if request.param == "folder" else f"{s3}/{uuid.uuid4().hex[:12]}/run"


@pytest.fixture
def taken() -> Iterator[Callable[..., Lease]]:
    """Takes leases, and gives them back at the end."""
    leases: list[Lease] = []

    def take(url: str, launch: str = "here", seconds: float = 60) -> Lease:
        leases.append(Lease.take(RunDir(url), launch, seconds))
        return leases[-1]

    yield take
    for lease in leases:
        lease.release()
