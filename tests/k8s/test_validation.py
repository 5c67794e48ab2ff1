"""Offline validation: each mistake with its name, its value, what is allowed and how to fix it."""

import re
from typing import Any

import pytest
from torchx.specs import AppDef, Resource, Role

from k8s.options import RunOptions
from k8s.validation import problems_of as problems_of_options
from pipeline.errors import UserError
from tests.support.manifests import both, objects, training


def problems_of(app: AppDef, opts: dict[str, Any], app_id: str = "app-1") -> list[str]:
    return problems_of_options(app, RunOptions.of(opts), app_id)


def test_a_role_that_comes_after_another_needs_a_jobset() -> None:
    (problem,) = problems_of(both(), {})
    assert "kind=job starts all roles at once; set kind=jobset" in problem
    app = both()
    app.roles.reverse()
    (problem,) = problems_of(app, {"kind": "jobset"})
    assert "after='train' must be one of the roles before it: there are none" in problem


def bad_role(**fields: Any) -> AppDef:
    fields = {"resource": Resource(cpu=1, gpu=0, memMB=100), **fields}
    return AppDef("app", [Role(**{"name": "role", "image": "image:1", "entrypoint": "sh", **fields})])


@pytest.mark.parametrize(
    ("app", "opts", "words"),
    [
        (training(), {"kind": "jobste"}, "kind='jobste' must be one of job, jobset; did you mean 'jobset'?"),
        (training(), {"placement": "far"}, "placement='far' must be one of spread, pack"),
        (training(), {"image_pull_policy": "always"}, "did you mean 'Always'?"),
        (training(), {"user": 0}, "user=0 is root"),
        (training(), {"ttl": -1}, "ttl=-1 must be >= 0"),
        (training(), {"namespace": "My_team"}, "namespace='My_team' must be lower-case letters"),
        (training(), {"env_secrets": ["S3"]}, "env_secrets='S3' is no name of an object: must be lower-case letters"),
        (training(), {"config_maps": {"a": "config"}}, "config_maps=a:config: expected a path"),
        (training(), {"labels": {"a b": "c"}}, "labels=a b:c: write key:value"),
        (training(), {"node_selector": {"pool": "a/b"}}, "node_selector=pool:a/b"),
        (training(), {"tolerations": ["a b"]}, "tolerations='a b': write key, key:effect"),
        (training(), {"queue_priority": "high"}, "only Kueue reads it; name its LocalQueue by queue"),
        (training(), {"queue": "q", "required_topology": "a", "preferred_topology": "b"}, "takes one of them"),
        (training(), {"placement_strict": True}, "has no effect without placement"),
        (
            training(secrets=["KEY"]),
            {},
            "secrets=KEY: taken from which Secret? Name the one that has this key by secret",
        ),
        (training(mounts=["type=bind", "src=/a", "dst=/b"]), {}, "write type=volume,src=CLAIM"),
        (training(mounts=["type=device", "src=/dev/a"]), {"host_paths": True}, "would need a privileged pod"),
        (training(mounts=["type=volume", "src=A", "dst=/b"]), {}, "src='A' is no name of an object"),
        (training(mounts=["type=volume", "src=a", "dst=b"]), {}, "dst='b': expected a path that begins with '/'"),
        (training(mounts=["type=volume", "src=a", "dst=/c"]), {"config_maps": {"a": "/c"}}, "'/c' 2 times"),
        (training(memory=100, shm=200), {}, "shm=200 must be 0 to memory=100"),
        (training(env={"A B": "1"}), {}, "env='A B'"),
        (training(env={"JOB_COMPLETION_INDEX": "1"}), {}, "but not JOB_COMPLETION_INDEX"),
        (bad_role(name="My_role"), {}, "role='My_role' must be lower-case letters"),
        (bad_role(num_replicas=0), {}, "num_replicas=0 must be >= 1"),
        (bad_role(num_replicas=2, min_replicas=3), {}, "min_replicas=3 must be 1 to num_replicas=2"),
        (bad_role(max_retries=-1), {}, "max_retries=-1"),
        (bad_role(resource=Resource(cpu=1, gpu=-1, memMB=5)), {}, "gpu=-1 must be >= 0"),
        (bad_role(resource=Resource(cpu=0, gpu=0, memMB=5)), {}, "cpu=0 must be > 0"),
        (bad_role(resource=Resource(cpu=1, gpu=0, memMB=-1)), {}, "memory=-1 must be > 0"),
        (bad_role(name="r" * 60), {}, "of app_id='app-1': pods would be called"),
        (AppDef("app", []), {}, "has no roles"),
        (AppDef("app", training().roles * 2), {}, "role='train' is there 2 times"),
    ],
)
def test_a_mistake_is_reported_with_what_is_allowed(app: AppDef, opts: dict[str, Any], words: str) -> None:
    (problem,) = problems_of(app, opts, "app-1")
    assert words in problem
    with pytest.raises(UserError, match=re.escape(problem)):
        objects(app, "app-1", opts)


@pytest.mark.parametrize("kind", ["job", "jobset"])
def test_pod_names_may_have_63_characters(kind: str) -> None:
    for nodes in (1, 10, 11, 100):
        pod = f"-train-{'0-' if kind == 'jobset' else ''}{nodes - 1}-abcde"
        app, longest = training(nodes=str(nodes)), "a" * (63 - len(pod))
        assert objects(app, longest, {"kind": kind})
        (problem,) = problems_of(app, {"kind": kind}, f"{longest}bc")
        assert f"'{longest}bc{pod}', the limit is 63 characters; shorten the names by 2" in problem


def test_all_mistakes_are_reported_at_once() -> None:
    assert len(problems_of(training(secrets=["A", "B"]), {"kind": "x", "user": 0}, "Bad_id")) == 5
