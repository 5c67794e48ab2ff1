"""Fixtures for tests against an API server: a plugin of theirs, for they also run where conftest's packages are not."""

from collections.abc import Iterator
from pathlib import Path

import kmock
import pytest

from k8s.cluster_api import Patience
from k8s.scheduler import KubernetesJob
from tests.support.api_server import ApiServer, serving
from tests.support.k8s_parts import kubeconfig


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """A server, which the kubeconfig names."""
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    with serving() as (server, url):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "kubeconfig", url)))
        yield server
        # What is not there is no error of the server's, nor is a client that is gone.
        own = (kmock.KubernetesError, ConnectionError)
        assert not [error for error in server.errors if not isinstance(error, own)]


@pytest.fixture
def scheduler(api: ApiServer) -> Iterator[KubernetesJob]:
    """The scheduler, in a hurry."""
    made = KubernetesJob("torchx", poll=0.05, patience=Patience(total=2, first=0.02))
    yield made
    made.close()
