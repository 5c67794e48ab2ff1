"""The client of the API server: connecting, and watches across lost connections."""

import time
from pathlib import Path
from typing import Any

import pytest
from kubernetes.config import incluster_config
from urllib3.exceptions import SSLError

from components.train import train
from k8s import cluster_api
from k8s.cluster_api import Cluster, ClusterAway, Patience
from k8s.scheduler import KubernetesJob
from pipeline.errors import UserError
from tests.support.api_server import ApiServer, Fault
from tests.support.k8s_parts import kubeconfig

pytest_plugins = ("tests.support.k8s_fixtures",)
pytestmark = pytest.mark.timeout(60)

SELECTOR = {"app.kubernetes.io/instance": "one"}


@pytest.fixture
def run(scheduler: KubernetesJob) -> str:
    """A run of two nodes."""
    app = train(run_dir="s3://bucket/one", nodes="2", rdzv_port=29_500)
    return scheduler.schedule(scheduler.submit_dryrun(app, scheduler.run_opts().resolve({"app_id": "one"})))


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


def connected() -> Cluster:
    return Cluster.connect(patience=Patience(total=2, first=0.02))


def phases(pods: list[dict[str, Any]]) -> list[str]:
    return [pod["status"]["phase"] for pod in pods]


def test_a_watch_with_an_expired_version_starts_from_a_new_list(api: ApiServer, run: str) -> None:
    pod = api.start_pod("one-train", 0, phase="Pending")
    watch = connected().pods("default", SELECTOR, 30)
    assert phases(next(watch)) == ["Pending"]
    # Before the watch is opened.
    api.change("Pod", pod, {"status": {"phase": "Running"}})
    api.forgotten = api.version
    assert phases(next(watch)) == ["Running"]
    api.change("Pod", pod, {"status": {"phase": "Succeeded"}})
    assert phases(next(watch)) == ["Succeeded"]
    # The same as an answer of its own.
    watch = connected().pods("default", SELECTOR, 30)
    api.faults = [Fault("watch pods", 410, "too old resource version")]
    assert phases(next(watch)) == phases(next(watch)) == ["Succeeded"]
    api.remove("Pod", pod)
    assert next(watch) == []
    watch.close()
    assert api.seen.count("list pods") == 4


def test_a_watch_resumes_after_lost_connections_until_its_timeout(api: ApiServer, run: str) -> None:
    pod = api.start_pod("one-train", 0, phase="Pending")
    api.cuts["watch"] = [0, 0]
    watch = connected().pods("default", SELECTOR, 30)
    next(watch)
    api.later(0.3, api.change, "Pod", pod, {"status": {"phase": "Running"}})
    assert phases(next(watch)) == ["Running"]
    assert api.seen.count("list pods") == 1
    assert api.seen.count("watch pods") >= 3
    start = time.monotonic()
    assert len(list(connected().pods("default", SELECTOR, 0.3))) == 1
    assert time.monotonic() - start < 2
