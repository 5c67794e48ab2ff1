"""Rejections by the API server as sentences that say how to fix them."""

from typing import Any

import pytest

from k8s.scheduler import KubernetesJob
from pipeline.errors import UserError
from tests.support.api_server import ApiServer, Fault
from tests.support.k8s_parts import ROLES, rules_of, submit

pytest_plugins = ("tests.support.k8s_fixtures",)
pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(".*", 401, "Unauthorized"), "the cluster does not accept your credentials .*log in again"),
        (
            Fault("create .*", 403, "admission webhook says no"),
            "create Job 'one-train' was rejected: admission webhook",
        ),
        (Fault("create .*", 400, "strict decoding error"), "was not understood: strict decoding error"),
        (Fault("create .*", 418, ""), "create Job 'one-train' failed with 418: I'm a Teapot"),
    ],
)
def test_a_rejection_is_a_sentence(api: ApiServer, scheduler: KubernetesJob, fault: Fault, message: str) -> None:
    api.faults = [fault]
    with pytest.raises(UserError, match=message):
        submit(scheduler)


def test_a_missing_right_is_named_with_its_verb(api: ApiServer, scheduler: KubernetesJob) -> None:
    api.allowed.discard(("batch", "jobs", "create"))
    message = (
        "namespace 'team': you may not create jobs .*User \"ada\".*ask .*`create jobs` in this namespace; k8s/cluster/"
    )
    with pytest.raises(UserError, match=message):
        submit(scheduler, namespace="team")
    api.allowed = rules_of(ROLES) - {("", "services", "create")}
    with pytest.raises(UserError, match="`create services`"):
        submit(scheduler)
    assert not api.objects_of("Job")


@pytest.mark.parametrize(
    ("rule", "cfg", "component"),
    [
        (("policy", "poddisruptionbudgets", "create"), {"keep_nodes": True}, "components/keep-nodes "),
        (("jobset.x-k8s.io", "jobsets", "create"), {"kind": "jobset"}, "components/jobset "),
        (("", "services", "create"), {}, " "),
    ],
)
def test_a_missing_right_names_the_folder_whose_role_holds_it(
    api: ApiServer, scheduler: KubernetesJob, rule: tuple[str, str, str], cfg: dict[str, Any], component: str
) -> None:
    api.allowed.discard(rule)
    with pytest.raises(UserError, match=f"`create {rule[1]}` in this namespace; k8s/cluster/{component}holds the Role"):
        submit(scheduler, **cfg)


def test_what_does_not_exist_is_named(api: ApiServer, scheduler: KubernetesJob) -> None:
    with pytest.raises(UserError, match=r"namespace 'nowhere' does not exist .*namespace="):
        submit(scheduler, namespace="nowhere")
    api.faults = [Fault("list jobs", 404, "page not found")]
    with pytest.raises(UserError, match="jobs does not exist"):
        scheduler.list()
    api.installed.discard("jobsets")
    assert scheduler.list() == []
    with pytest.raises(UserError, match=r"this cluster has no JobSet .*kind=job"):
        submit(scheduler, kind="jobset")
    assert scheduler.describe("nobody") is None
