"""An AppDef as Kubernetes objects: golden files, strict validation, and properties over random AppDefs.

WRITE_GOLDEN=1 python -m pytest -n 0 tests/k8s/test_manifests.py      rewrites tests/k8s/golden
"""

import copy
import os
import re
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torchx.specs import AppDef, Resource, Role, VolumeMount, macros

from components.role import LaunchRequirements
from k8s import manifests
from k8s.manifests import owned, to_yaml
from k8s.options import RunOptions
from k8s.pods import label_value
from k8s.renewal import renewed
from k8s.validation import problems_of as problems_of_options
from tests.support.commands import ROOT
from tests.support.manifests import GOLDEN, both, foreign, jobs_of, made, objects, validate

SECRET = "tell-nobody"
LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


@pytest.fixture(autouse=True)
def _version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden files do not depend on TorchX's version."""
    monkeypatch.setattr(manifests, "__version__", "0.0.0")


def problems_of(app: AppDef, opts: dict[str, Any], app_id: str = "app-1") -> list[str]:
    return problems_of_options(app, RunOptions.of(opts), app_id)


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_submitted_equals_the_golden_file(name: str) -> None:
    app, opts = GOLDEN[name]
    text = to_yaml(objects(app, f"{label_value(app.name).lower()}-x1", opts, user="Jo Doe@example.com"))
    golden = ROOT / f"tests/k8s/golden/{name}.yaml"
    if os.environ.get("WRITE_GOLDEN"):
        golden.write_text(text)
    assert golden.read_text() == text


def test_each_golden_file_is_compared() -> None:
    assert {path.stem for path in (ROOT / "tests/k8s/golden").iterdir()} == set(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_golden_files_pass_strict_validation(name: str) -> None:
    for one in yaml.safe_load_all((ROOT / f"tests/k8s/golden/{name}.yaml").read_text()):
        validate(one)


def test_objects_after_a_job_are_owned_by_it() -> None:
    plain = made(foreign(), keep_nodes=True)
    assert [one["kind"] for one in plain] == ["Job", "Service", "PodDisruptionBudget"] * 2
    found = owned(plain[1], plain[0], "uid-1")
    validate(found)
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": "app-1-server", "uid": "uid-1"}
    assert found["metadata"]["ownerReferences"] == [reference]
    assert "ownerReferences" not in plain[1]["metadata"]
    (job_set, *budgets) = made(both(), kind="jobset", keep_nodes=True)
    assert {one["kind"] for one in budgets} == {"PodDisruptionBudget"}
    assert owned(budgets[0], job_set, "uid")["metadata"]["ownerReferences"][0]["kind"] == "JobSet"


@pytest.mark.parametrize("name", [name for name in GOLDEN if not name.startswith("jobset") and name != "foreign"])
def test_the_next_job_of_a_run_passes_strict_validation_and_differs_in_name_only(name: str) -> None:
    job, *_ = yaml.safe_load_all((ROOT / f"tests/k8s/golden/{name}.yaml").read_text())
    started = datetime(2026, 1, 1, tzinfo=UTC)
    following = renewed({**job, "status": {"startTime": started.isoformat()}}, started, 0)
    validate(following)
    assert following["spec"].pop("suspend") is True
    first, second = (to_yaml([one["spec"]]) for one in (job, following))
    own = second.replace(f"{job['metadata']['name']}-g2", job["metadata"]["name"])
    assert own.replace("pipeline/generation: '2'", "pipeline/generation: '1'") == first
    third = renewed({**following, "status": {"startTime": started.isoformat()}}, started, 0)
    assert third["metadata"]["name"] == f"{job['metadata']['name']}-g3"


def test_yaml_quotes_what_parsers_read_differently() -> None:
    tricky = ["1e3", "y", "N", "On", "0o17", "0x1F", "1_000", "12:30:45", ".5", "~", "2026-01-01", "", "- a", "a: b"]
    tricky += ["#", "a #b", "'", '"', "a\nb", "null", "\u2028", " a ", "=", "<<", "!a", "&a", "*a", "%", "@", "`", "a:"]
    text = to_yaml([{"values": tricky}])
    assert list(yaml.safe_load_all(text)) == [{"values": tricky}]
    assert all(line[2] in "'\"" for line in text.splitlines()[2:]), "none of them stands bare"


# Random AppDefs.

names = st.from_regex(r"[a-z]([-a-z0-9]{0,28}[a-z0-9])?", fullmatch=True)
# Many of them as long as they may be, or longer.
app_ids = st.one_of(names, st.integers(30, 60).map("a".__mul__))
pieces = ["$", "(", ")", "{", "}", "A", "HOME", "replica_id", "app_id", "\n", "é"]
dollars = st.lists(st.sampled_from(pieces)).map("".join)
texts = st.one_of(dollars, st.sampled_from([macros.replica_id, macros.app_id, f"$${{{macros.rank0_env}}}:29500"]))
variables = st.from_regex(r"[A-Z_]{1,8}", fullmatch=True)
roles = st.builds(
    Role,
    name=names,
    image=st.just("image:1"),
    entrypoint=st.just("sh"),
    args=st.lists(texts, max_size=3),
    env=st.dictionaries(variables, texts, max_size=3),
    num_replicas=st.integers(1, 1000),
    max_retries=st.integers(0, 5),
    resource=st.builds(Resource, cpu=st.integers(1, 64), gpu=st.integers(0, 8), memMB=st.integers(2, 10**6)),
    port_map=st.just({"a name that is no port's": 1}),
    mounts=st.lists(st.builds(VolumeMount, src=names, dst_path=names.map("/".__add__)), max_size=1),
    metadata=st.builds(
        lambda secrets: {"pipeline": {"secrets": secrets}}, st.lists(variables, max_size=2, unique=True)
    ),
)
apps = st.builds(AppDef, name=st.text(max_size=80), roles=st.lists(roles, min_size=1, max_size=3))
options = st.fixed_dictionaries(
    {"kind": st.sampled_from(["job", "jobset"]), "secret": names},
    optional={
        "namespace": names,
        "env_secrets": st.lists(names, max_size=2),
        "queue": names,
        "keep_nodes": st.booleans(),
        "labels": st.dictionaries(names, names, max_size=2),
        "node_selector": st.dictionaries(names, names, max_size=2),
        "placement": st.sampled_from(["", "spread", "pack"]),
        "disk": st.integers(0, 10**6),
    },
)


def expand(text: str, known: dict[str, str]) -> str:
    """What Kubernetes makes of a container's arguments and variables (k8s.io/kubernetes third_party/.../expansion)."""

    def one(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return known.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", one, text)


@settings(max_examples=150, deadline=None)
@given(apps, options, app_ids, st.text(max_size=70))
def test_random_apps_become_consistent_objects(app: AppDef, opts: dict[str, Any], app_id: str, user: str) -> None:
    before = copy.deepcopy((app, opts))
    problems = problems_of(app, opts, app_id)
    if problems:
        assert all("times" in problem or "shorten the names" in problem for problem in problems)
        return
    found = objects(app, app_id, opts, user)
    assert found == objects(app, app_id, opts, user)
    assert (app, opts) == before, "nothing passed in is changed"
    assert list(yaml.load_all(to_yaml(found), yaml.CSafeLoader)) == found
    assert len({(one["kind"], one["metadata"]["name"]) for one in found}) == len(found)
    jobs = [job for one in found for job in jobs_of(one)]
    others = [job for one in objects(app, f"{app_id[:5]}x", opts) for job in jobs_of(one)] if len(app_id) > 6 else []
    hosts = dict[str, str]()
    for one in (*found, *jobs):
        assert LABEL.fullmatch(one["metadata"]["name"])
        assert all(VALUE.fullmatch(value) for value in one["metadata"]["labels"].values())
    for job in jobs:
        pod = job["spec"]["template"]
        assert all(VALUE.fullmatch(value) for value in pod["metadata"]["labels"].values())
        last = f"{job['metadata']['name']}-{job['spec']['completions'] - 1}"
        assert LABEL.fullmatch(f"{last}-abcde")
        if "subdomain" in pod["spec"]:
            hosts[f"{job['metadata']['name']}-0"] = pod["spec"]["subdomain"]
        else:
            hosts[f"{job['metadata']['name']}-0"] = app_id
    for one in found:
        if one["kind"] in ("Service", "PodDisruptionBudget"):
            wanted = one["spec"]["selector"]
            wanted = wanted.get("matchLabels", wanted)
            chosen = [
                job
                for job in (*jobs, *others)
                if wanted.items() <= job["spec"]["template"]["metadata"]["labels"].items()
            ]
            assert len(chosen) == 1
            assert chosen[0] in jobs
            if one["kind"] == "Service":
                assert chosen[0]["spec"]["template"]["spec"]["subdomain"] == one["metadata"]["name"]
    services = {one["metadata"]["name"] for one in found if one["kind"] in ("Service", "JobSet")}
    for role, job in zip(app.roles, jobs, strict=True):
        container = job["spec"]["template"]["spec"]["containers"][0]
        known = {one["name"]: one.get("value", "7") for one in container["env"]}
        if "TORCHX_RANK0_HOST" not in role.env:
            pod, _, service = known["TORCHX_RANK0_HOST"].partition(".")
            assert hosts[pod] == service
            assert service in services
        # As TorchX's other schedulers give a role to replica 7.
        values = macros.Values(img_root="", app_id=app_id, replica_id="7", rank0_env="TORCHX_RANK0_HOST").apply(role)
        assert [expand(argument, known) for argument in container["args"]] == values.args
        assert {name: expand(known[name], known) for name in role.env} == values.env


@settings(max_examples=30, deadline=None)
@given(apps, options)
def test_random_apps_pass_strict_validation(app: AppDef, opts: dict[str, Any]) -> None:
    if not problems_of(app, opts, "a-1"):
        for one in objects(app, "a-1", opts):
            validate(one)


@settings(max_examples=50, deadline=None)
@given(apps, options)
def test_no_object_holds_the_value_of_a_secret(app: AppDef, opts: dict[str, Any]) -> None:
    if problems_of(app, opts, "a-1"):
        return
    secrets = {name for role in app.roles for name in LaunchRequirements.of(role).secrets}
    with pytest.MonkeyPatch.context() as patch:
        for name in secrets:
            patch.setenv(name, SECRET)
        found = objects(app, "a-1", opts)
    assert SECRET not in to_yaml(found)
    jobs = [job for one in found for job in jobs_of(one)]
    for role, job in zip(app.roles, jobs, strict=True):
        environment = {one["name"]: one for one in job["spec"]["template"]["spec"]["containers"][0]["env"]}
        for name in set(LaunchRequirements.of(role).secrets) - set(role.env):
            assert environment[name]["valueFrom"] == {"secretKeyRef": {"name": opts["secret"], "key": name}}
