"""The AppDef of a prediction."""

import pytest
from torchx.specs import macros

from components.predict import predict
from pipeline.errors import UserError


def test_predict_runs_under_an_agent_on_any_number_of_nodes() -> None:
    app = predict("--data.predict=my.Set", run_dir="s3://b/r", checkpoint="best", nodes="2", processes=3, rdzv_port=7)
    role = app.roles[0]
    assert (app.name, role.name, role.num_replicas) == ("predict", "predict", 2)
    values = macros.Values(img_root="", app_id="app-1", replica_id="0", rank0_env="TORCHX_RANK0_HOST")
    command = values.apply(role).args[1]
    assert "--nnodes 2 --nproc-per-node 3" in command
    assert command.endswith(
        "--role predict -m pipeline predict --run_dir s3://b/r --checkpoint best --data.predict=my.Set"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"nodes": "x"}, "nodes='x'"), ({"checkpoint": "newest"}, "checkpoint='newest'"), ({"cpu": 0}, "cpu=0")],
)
def test_predict_rejects_what_cannot_work(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        predict(**{"run_dir": "r", **arguments})  # type: ignore[arg-type]
