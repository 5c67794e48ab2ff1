"""What the tests of Kubernetes objects share: strict validation, and the AppDefs whose objects are golden files."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
from torchx.specs import AppDef, Resource, Role, macros

from components.evaluate import evaluate
from components.train import train
from k8s import manifests
from k8s.options import RunOptions
from tests.support.commands import ROOT

VERSIONS = ("1.31", kubernetes_validate.latest_version())
JOBSET_SCHEMA = json.loads((ROOT / "tests/k8s/jobset.schema.json").read_text())

Object = dict[str, Any]


def validate(one: Object) -> None:
    """Validate an object strictly, as an API server does: unknown fields are errors."""
    if one["kind"] == "JobSet":
        jsonschema.validate(one, JOBSET_SCHEMA)
        for job in jobs_of(one):
            validate(job)
        return
    for version in VERSIONS:
        kubernetes_validate.validate(one, version, strict=True)


def jobs_of(one: Object) -> Iterator[Object]:
    """The Jobs that an object is or, as a JobSet, will make."""
    if one["kind"] == "Job":
        yield one
    elif one["kind"] == "JobSet":
        for job in one["spec"]["replicatedJobs"]:
            template = job["template"]
            name = f"{one['metadata']['name']}-{job['name']}-0"
            yield {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": name, **template["metadata"]},
                "spec": template["spec"],
            }


def objects(app: AppDef, app_id: str, opts: dict[str, Any], user: str = "") -> list[Object]:
    """The objects of an app by run options as TorchX passes them."""
    return manifests.objects(app, app_id, RunOptions.of(opts), user)


def made(app: AppDef, **opts: Any) -> list[Object]:
    """The objects of the run `app-1`."""
    return objects(app, "app-1", opts, user="me")


def pod_spec_of(app: AppDef, **opts: Any) -> Any:
    """The pod spec of the only Job of an app."""
    (job,) = (job for one in made(app, **opts) for job in jobs_of(one))
    return job["spec"]["template"]["spec"]


def training(*app_args: str, **parameters: Any) -> AppDef:
    return train(*app_args, **{"run_dir": "s3://bucket/run", "rdzv_port": 29_500, **parameters})


def both(**parameters: Any) -> AppDef:
    """Training and then evaluation as one app."""
    (first,), (then,) = training(**parameters).roles, evaluate(run_dir="s3://bucket/run").roles
    then.metadata["pipeline"]["after"] = first.name
    return AppDef("pipeline", [first, then])


def foreign() -> AppDef:
    """An app that knows nothing of this project, with roles that start together."""
    resource = Resource(cpu=1, gpu=0, memMB=512, capabilities={"node.kubernetes.io/instance-type": "large"})
    command = f"echo {macros.replica_id} of {macros.app_id} at $${{{macros.rank0_env}}} costs 5$$$$ $$(HOME)"
    server = Role("server", "image:1", entrypoint="sh", args=["-c", command], resource=resource, max_retries=1)
    reader = Role("my-reader", "image:2", entrypoint="read", args=["--me", macros.replica_id], num_replicas=3)
    reader.resource, reader.env = (
        resource,
        {"WHO": f"reader {macros.replica_id} of $${macros.replica_id}", "RATE": "1e3"},
    )
    return AppDef("Foreign app", [server, reader])


GOLDEN: dict[str, tuple[AppDef, dict[str, Any]]] = {
    "train": (training(), {}),
    "train_two_nodes": (training("--trainer.max_epochs=3", nodes="2", grace=60, shm=256, retries=5, cpu=8), {}),
    "train_gpus": (
        training(nodes="2", gpu=8, cpu=64, memory=500_000, image="registry.example.com/team/pipeline:1"),
        {
            "image_pull_secrets": ["registry"],
            "image_pull_policy": "Always",
            "gpu_resource": "amd.com/gpu",
            "tolerations": ["amd.com/gpu:NoSchedule", "spot:true:NoExecute"],
            "node_selector": {"pool": "gpu"},
            "runtime_class": "gpu",
        },
    ),
    "train_elastic": (training(nodes="2:4"), {"namespace": "team"}),
    "train_queued": (
        training(nodes="2:4", gpu=8),
        {"queue": "training", "queue_priority": "high", "required_topology": "cloud.example.com/rack"},
    ),
    "train_secrets": (
        training(nodes="2", secrets=["HF_TOKEN", "WANDB_API_KEY"], env={"HF_HOME": "/tmp/hf"}),
        {"secret": "tokens", "env_secrets": ["s3", "more"], "env_config_maps": ["settings"]},
    ),
    "train_volumes": (
        training(
            nodes="2",
            config="/config/my.yaml",
            mounts=["type=volume", "src=runs", "dst=/runs", "type=bind", "src=/data", "dst=/tmp", "readonly"],
        ),
        {"host_paths": True, "config_maps": {"my-config": "/config"}},
    ),
    "train_spread": (
        training(nodes="2"),
        {"placement": "spread", "placement_strict": True, "priority_class": "high", "scheduler_name": "own"},
    ),
    "train_packed": (
        training(nodes="4"),
        {"placement": "pack", "placement_key": "topology.kubernetes.io/zone", "keep_nodes": True},
    ),
    "train_for_ever": (
        training(),
        {"deadline": 0, "ttl": 0, "user": 1000, "read_only": False, "cpu_limit": True, "disk": 20_000},
    ),
    "evaluate": (
        evaluate(run_dir="s3://bucket/run", checkpoint="best"),
        {"service_account": "pipeline-training", "labels": {"team": "a"}, "annotations": {"example.com/why": "a test"}},
    ),
    "foreign": (foreign(), {}),
    "jobset": (both(nodes="2"), {"kind": "jobset"}),
    "jobset_queued": (
        both(nodes="1:2", secrets=["HF_TOKEN"]),
        {
            "kind": "jobset",
            "queue": "training",
            "preferred_topology": "cloud.example.com/rack",
            "secret": "tokens",
            "keep_nodes": True,
            "ttl": 0,
            "annotations": {"example.com/why": "a test"},
        },
    ),
}
"""Names, AppDefs and run options of the golden files."""
