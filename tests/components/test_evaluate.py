"""The AppDef of an evaluation."""

import pytest
from torchx.specs import AppDef, macros

from components.evaluate import evaluate
from pipeline.errors import UserError


def substituted(app: AppDef, **more: str) -> list[str]:
    """The shell command line of the first replica, as TorchX's macros leave it."""
    values = macros.Values(img_root="", app_id="app-1", replica_id="0", rank0_env="TORCHX_RANK0_HOST", **more)
    return values.apply(app.roles[0]).args


def test_evaluate_is_always_one_node_and_one_process_without_an_agent() -> None:
    app = evaluate("--data.batch_size=9", run_dir="s3://b/r", checkpoint="best", cpu=3, memory=100, image="i")
    role = app.roles[0]
    assert (app.name, role.name, role.num_replicas, role.min_replicas) == ("evaluate", "evaluate", 1, None)
    assert (role.resource.cpu, role.resource.memMB, role.resource.gpu) == (3, 100, 0)
    assert substituted(app) == [
        "-c",
        "exec python -m pipeline test --run_dir s3://b/r --checkpoint best --data.batch_size=9",
    ]
    assert "--checkpoint" not in evaluate(run_dir="r").roles[0].args[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"gpu": 2}, "gpu=2"), ({"checkpoint": "newest"}, "checkpoint='newest'"), ({"run_dir": "memory://x"}, "memory")],
)
def test_evaluate_rejects_what_would_score_samples_twice(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        evaluate(**{"run_dir": "r", **arguments})  # type: ignore[arg-type]
