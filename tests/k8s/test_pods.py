"""The pod template: privileges, grace and shared memory."""

from k8s.pods import MARGIN
from tests.support.manifests import GOLDEN, jobs_of, made, objects, pod_spec_of, training


def test_pods_comply_with_pod_security_restricted() -> None:
    for app, opts in GOLDEN.values():
        for job in (job for one in objects(app, "app-1", opts) for job in jobs_of(one)):
            pod = job["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"]
            assert pod["securityContext"]["runAsUser"] > 0
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod["automountServiceAccountToken"] is False
            for container in pod["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            if not opts.get("host_paths"):
                kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
                assert kinds <= {"emptyDir", "persistentVolumeClaim", "configMap"}


def test_a_pod_has_more_grace_than_its_agent() -> None:
    app = training(grace=77)
    assert "--shutdown-timeout 77" in app.roles[0].args[1]
    assert pod_spec_of(app)["terminationGracePeriodSeconds"] == 77 + MARGIN


def test_shared_memory_has_a_limit_within_the_memory() -> None:
    for shm, size in ((0, "500Mi"), (64, "64Mi")):
        (volume,) = (one for one in pod_spec_of(training(memory=1000, shm=shm))["volumes"] if one["name"] == "shm")
        assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": size}


def test_pods_that_show_figures_are_found_by_prometheus() -> None:
    def annotations(*more: str) -> dict[str, str]:
        (job,) = (job for one in made(training(*more)) for job in jobs_of(one))
        return dict(job["spec"]["template"]["metadata"]["annotations"])

    assert (
        annotations("--metrics_port=9100").items()
        >= {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": "9100",
            "prometheus.io/path": "/metrics",
        }.items()
    )
    assert annotations("--metrics_port", "9100")["prometheus.io/port"] == "9100"
    assert not [name for name in annotations() if name.startswith("prometheus.io")]
