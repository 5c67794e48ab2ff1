"""What a cluster needs once: each file read as kustomize and an API server would."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.commands import ROOT
from tests.support.manifests import GOLDEN, jobs_of, objects, validate

CLUSTER = ROOT / "k8s/cluster"
KUSTOMIZATIONS = sorted(path.parent for path in CLUSTER.rglob("kustomization.yaml"))
FILES = sorted(set(CLUSTER.rglob("*.yaml")) - {folder / "kustomization.yaml" for folder in KUSTOMIZATIONS})


def read(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def all_of(kind: str) -> dict[str, dict[str, Any]]:
    found = (one for path in FILES for one in read(path))
    return {one["metadata"]["name"]: one for one in found if one["kind"] == kind}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_each_object_passes_strict_validation(path: Path) -> None:
    for one in read(path):
        if one["kind"] == "LocalQueue":
            assert one["apiVersion"].startswith("kueue.x-k8s.io/")
            assert one["spec"] == {"clusterQueue": "training"}
        else:
            validate(one)


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: folder.name)
def test_kustomize_finds_each_file_and_leaves_none_out(folder: Path) -> None:
    (kustomization,) = read(folder / "kustomization.yaml")
    component = folder != CLUSTER
    assert kustomization["kind"] == ("Component" if component else "Kustomization")
    assert kustomization["apiVersion"] == f"kustomize.config.k8s.io/{'v1alpha1' if component else 'v1beta1'}"
    assert set(kustomization) <= {"apiVersion", "kind", "namespace", "labels", "resources"}
    here = {path.name for path in FILES if path.parent == folder and not path.stem.endswith(".example")}
    assert set(kustomization["resources"]) == here
    for one in (one for name in here for one in read(folder / name)):
        # kustomize puts the namespace of the base into its objects; a component's say it themselves.
        if component:
            assert one["metadata"]["namespace"] == "pipeline"
        elif one["kind"] != "Namespace":
            assert kustomization["namespace"] == "pipeline"


def test_the_namespace_refuses_pods_that_are_not_restricted() -> None:
    found = all_of("Namespace")["pipeline"]["metadata"]["labels"]
    assert {found[f"pod-security.kubernetes.io/{what}"] for what in ("enforce", "audit", "warn")} == {"restricted"}


def test_the_roles_grant_only_what_submitting_needs() -> None:
    accounts = all_of("ServiceAccount")
    assert accounts["pipeline-training"]["automountServiceAccountToken"] is False
    roles, bindings = all_of("Role"), all_of("RoleBinding")
    assert set(roles) == set(bindings), "no Role covers the whole cluster"
    for name, role in roles.items():
        assert bindings[name]["roleRef"]["name"] == name
        assert [subject["name"] for subject in bindings[name]["subjects"]] == ["pipeline-driver"]
        for rule in role["rules"]:
            everything = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert not everything & {"*", "secrets", "pods/exec", "pods/attach", "roles", "escalate", "bind"}


def test_the_network_policies_select_the_pods_of_runs() -> None:
    policy = all_of("NetworkPolicy")["runs"]["spec"]
    ours = policy["podSelector"]["matchLabels"].items()
    (inwards,) = policy["ingress"]
    assert inwards == {"from": [{"podSelector": policy["podSelector"]}]}
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    dns = [rule for rule in policy["egress"] if {"protocol": "UDP", "port": 53} in rule.get("ports", ())]
    assert len(dns) == 1
    for app, opts in GOLDEN.values():
        for job in (job for one in objects(app, "app-1", opts) for job in jobs_of(one)):
            assert ours <= job["spec"]["template"]["metadata"]["labels"].items()
    everybody = all_of("NetworkPolicy")["default-deny-ingress"]["spec"]
    assert everybody == {"podSelector": {}, "policyTypes": ["Ingress"]}


def test_the_example_of_a_secret_holds_none() -> None:
    values = all_of("Secret")["s3"]["stringData"]
    assert {value for name, value in values.items() if name != "AWS_ENDPOINT_URL"} == {"put-yours-here"}


def test_the_overlay_of_the_documentation_names_existing_components() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text()
    overlay = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    wanted = {CLUSTER / Path(*Path(name).parts[3:]) for name in overlay["components"]}
    assert wanted == set(KUSTOMIZATIONS) - {CLUSTER}
