"""What a cluster needs once: each file read as kustomize and an API server would."""

import shutil
import subprocess
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
    inwards, monitoring = policy["ingress"]
    assert inwards == {"from": [{"podSelector": policy["podSelector"]}]}
    names = {"kubernetes.io/metadata.name": "monitoring"}
    assert monitoring == {"from": [{"namespaceSelector": {"matchLabels": names}}]}
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


def overlays() -> list[tuple[Path, dict[str, Any]]]:
    """The kustomizations in the documentation, each with its page."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [(page, text.split("```")[0]) for page in pages for text in page.read_text().split("```yaml\n")[1:]]
    parsed = [(page, yaml.safe_load(text)) for page, text in blocks if "kind: Kustomization" in text]
    return [(page, one) for page, one in parsed if one["kind"] == "Kustomization"]


def rendered(folder: Path, kustomization: dict[str, Any]) -> list[dict[str, Any]]:
    """What kustomize makes of a kustomization, as far as ours and those of the documentation go.

    Its namespace goes into all objects, and is the name of the Namespace. A subject follows the ServiceAccount that it
    names only if both have the same namespace in the files, or none.
    """
    made: list[dict[str, Any]] = []
    for name in (*kustomization.get("resources", ()), *kustomization.get("components", ())):
        path = (folder / name).resolve()
        below = path / "kustomization.yaml"
        found = rendered(path, *read(below)) if path.is_dir() else [{"origin": None, **one} for one in read(path)]
        for one in found:
            one["origin"] = one["origin"] or [one["metadata"].get("namespace")]
        made += found
    if namespace := kustomization.get("namespace"):
        for one in made:
            one["metadata"]["name" if one["kind"] == "Namespace" else "namespace"] = namespace
            one["origin"].append(namespace)
    accounts = {one["metadata"]["name"]: one for one in made if one["kind"] == "ServiceAccount"}
    for subject in (subject for one in made for subject in one.get("subjects", ())):
        account = accounts.get(subject["name"])
        if account and subject.get("namespace") in account["origin"]:
            subject["namespace"] = account["metadata"].get("namespace")
    return made


def by_kubectl(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(["kubectl", "kustomize", folder], check=True, capture_output=True, text=True, timeout=60)
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("namespace", ["as documented", "pipeline", "another"])
def test_an_overlay_renames_the_namespace_of_each_object_and_subject(tmp_path: Path, namespace: str) -> None:
    (tmp_path / "k8s").symlink_to(ROOT / "k8s")
    (overlay := tmp_path / "overlay").mkdir()
    assert overlays()
    for _, documented in overlays():
        wanted = documented if namespace == "as documented" else {**documented, "namespace": namespace}
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(wanted))
        made = rendered(overlay, wanted)
        if shutil.which("kubectl"):
            plain = [{key: value for key, value in one.items() if key != "origin"} for one in made]
            names = lambda things: sorted((one["kind"], one["metadata"]["name"]) for one in things)  # noqa: E731
            real = by_kubectl(overlay)
            assert names(plain) == names(real)
            made = real
        there = wanted["namespace"]
        roles = {one["metadata"]["name"] for one in made if one["kind"] == "Role"}
        accounts = {one["metadata"]["name"] for one in made if one["kind"] == "ServiceAccount"}
        assert {one["metadata"]["name"] for one in made if one["kind"] == "Namespace"} == {there}
        assert {one["metadata"]["namespace"] for one in made if one["kind"] != "Namespace"} == {there}
        bindings = [one for one in made if one["kind"] == "RoleBinding"]
        assert {one["roleRef"]["name"] for one in bindings} == roles
        for subject in (subject for one in bindings for subject in one["subjects"]):
            assert subject["name"] in accounts
            assert subject["namespace"] == there, "who may submit is who is there"


def test_the_overlay_of_the_documentation_names_existing_components() -> None:
    overlay = next(one for page, one in overlays() if page.name == "kubernetes.md")
    wanted = {CLUSTER / Path(*Path(name).parts[3:]) for name in overlay["components"]}
    assert wanted == set(KUSTOMIZATIONS) - {CLUSTER}
