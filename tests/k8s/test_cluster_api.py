"""The client of the API server: connecting."""

from pathlib import Path
from typing import Any

import pytest
from kubernetes.config import incluster_config
from urllib3.exceptions import SSLError

from k8s import cluster_api
from k8s.cluster_api import Cluster, ClusterAway, Patience
from pipeline.errors import UserError
from tests.support.k8s_parts import kubeconfig

pytest_plugins = ("tests.support.k8s_fixtures",)
pytestmark = pytest.mark.timeout(60)


def test_no_cluster_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(UserError, match="no cluster is configured: there is no kubeconfig"):
        Cluster.connect()
    with pytest.raises(UserError, match="kubeconfig='missing'"):
        Cluster.connect("missing")
    path = kubeconfig(tmp_path / "config", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"context='nobody'.*get-contexts"):
        Cluster.connect(str(path), "nobody")
    assert Cluster.connect(str(path), "away").namespace == "default"


def test_an_untrusted_certificate_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kubeconfig(tmp_path / "config", "https://127.0.0.1:9")
    cluster = Cluster.connect(str(path), patience=Patience(total=0.1, first=0.02))

    def shake(*_: Any, **__: Any) -> None:
        raise SSLError(words)

    monkeypatch.setattr(cluster._api.rest_client.pool_manager, "request", shake)
    words = "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"
    with pytest.raises(UserError, match=r"certificate is not trusted \(.*self-signed\): ask its owner"):
        cluster.items("Job", "default", {})
    words = "[SSL: UNEXPECTED_EOF_WHILE_READING]"
    with pytest.raises(ClusterAway, match="UNEXPECTED_EOF"):
        cluster.items("Job", "default", {})


def test_a_pod_uses_its_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    for name in ("TOKEN", "CERT"):
        (tmp_path / name).write_text(name)
        monkeypatch.setattr(incluster_config, f"SERVICE_{name}_FILENAME", str(tmp_path / name))
    (tmp_path / "namespace").write_text("team\n")
    monkeypatch.setattr(cluster_api, "_POD_NAMESPACE", tmp_path / "namespace")
    cluster = Cluster.connect()
    assert cluster.namespace == "team"
    assert cluster._api.configuration.host == "https://10.0.0.1:443"
    assert "bearer TOKEN" in cluster._api.configuration.api_key.values()
