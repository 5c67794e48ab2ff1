"""A real Slurm for these tests, one for each process that runs some."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import DIGITS, ROOT
from tests.support.launched import Launched, killed_in_the_end
from tests.support.slurm_cluster import Cluster

LAUNCH = (
    sys.executable,
    "-m",
    "components.launch",
    "-s",
    "slurm",
    "--cpu",
    "1",
    "--memory",
    "1000",
    "--config",
    DIGITS,
)


def _cluster(folder: Path, *, accounting: bool) -> Iterator[Cluster]:
    cluster = Cluster(folder, accounting=accounting)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm that keeps no accounts."""
    yield from _cluster(tmp_path_factory.mktemp("plain"), accounting=False)


@pytest.fixture(scope="session")
def accounting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm that does."""
    yield from _cluster(tmp_path_factory.mktemp("accounting"), accounting=True)


@pytest.fixture
def cluster(plain: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The Slurm that this process uses; no job of a test outlives it."""
    yield from _used(plain, tmp_path, monkeypatch)


@pytest.fixture
def accounted(accounting: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The one with accounts, likewise."""
    yield from _used(accounting, tmp_path, monkeypatch)


def _used(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield cluster
    cluster.run("scancel", "--user=root", "--signal=KILL", "--full")
    cluster.run("scancel", "--user=root")


class LaunchedJobs(Launched):
    """A run of the driver, and the jobs that it has submitted."""

    def __init__(self, log: Path, cluster: Cluster, *arguments: object) -> None:
        self.cluster = cluster
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests/docker/own")))}
        super().__init__(log, *LAUNCH, *arguments, env=environment)

    @property
    def job(self) -> str:
        """The id of the training's job."""
        return str(self.until(lambda: self.output.partition("train: slurm://torchx/")[2].partition("\n")[0]))

    def shows(self, job: str) -> str:
        """What Slurm says of a job."""
        return self.cluster.run("scontrol", "show", "job", "-o", job)


@pytest.fixture
def launch(cluster: Cluster, tmp_path: Path) -> Callable[..., Any]:
    """`python -m components.launch` on Slurm, as a context."""
    return lambda *arguments: killed_in_the_end(LaunchedJobs(tmp_path / "log", cluster, *arguments))
