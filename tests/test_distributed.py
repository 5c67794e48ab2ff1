"""Two real gloo ranks under torchrun: one model, one run directory, the same losses for ever."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.commands import DIGITS, ROOT, command, torchrun

ROWS = (
    *("-m", "pipeline", "fit", "--model", "tests.support.models.Recording", "--data", "pipeline.data.DataModule"),
    *(
        "--data.train",
        "tests.support.models.Rows",
        "--data.val",
        "tests.support.models.Rows",
        "--data.batch_size=8",
    ),
    "--trainer.enable_model_summary=false",
)

LOGS_ON_RANK_0 = (
    *("-m", "pipeline", "fit", "--model", "tests.support.models.LogsOnRank0", "--data", "pipeline.data.DataModule"),
    *("--data.train=tests.support.models.Rows", "--data.batch_size=16", "--trainer.max_epochs=2"),
    "--trainer.enable_model_summary=false",
)

# The first 20 losses of rank 0: seed 42, 101 rows, two ranks with a batch of 8 each, one thread. They change only when
# the order of samples, the initial weights or the arithmetic do; write new ones with
# `python -m pytest tests/test_distributed.py -k golden -s` and say why in the commit.
GOLDEN = [
    *(1.931177, 4.169988, 0.9255146, 1.934494, 1.475119, 0.6091059, 1.050065, 1.64125, 0.140697, 0.8607423),
    *(0.06513511, 0.08105325, 0.3639907, 0.2260463, 0.4457946, 0.1881794, 0.2014323, 0.5835309, 0.2800836, 0.3948129),
]


def recorded(out: Path) -> list[dict[str, object]]:
    return [torch.load(f"{out}-{rank}.pt", weights_only=True) for rank in range(2)]


def fit(run: Path, out: Path, epochs: int) -> str:
    ended = torchrun(2, *ROWS, "--run_dir", run, "--model.out", out, f"--trainer.max_epochs={epochs}")
    assert ended.status == 0, ended.text
    return ended.err


@pytest.mark.timeout(240)
def test_ranks_agree_losses_are_golden_and_a_resume_equals_straight(tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    log = fit(straight, tmp_path / "s", 4)
    assert "started on 1 node x 2 processes" in log
    assert log.count("saved checkpoint step 7 ") == 1, "only rank 0 speaks"
    assert log.count("saved checkpoint step 28 ") == 1, "the newest, in the place of those before it"
    first, second = recorded(tmp_path / "s")
    states: list[dict[str, Tensor]] = [first["state"], second["state"]]  # type: ignore[list-item]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert first["losses"] != second["losses"], "each rank trains on samples of its own"
    losses = first["losses"][:20]  # type: ignore[index]
    print(f"\nGOLDEN = {[float(f'{loss:.7g}') for loss in losses]}")
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(GOLDEN), rtol=1e-5, atol=0)

    fit(resumed, tmp_path / "r", 2)
    assert "resumed at step 14" in fit(resumed, tmp_path / "r", 4)
    after = recorded(tmp_path / "r")[0]
    assert after["losses"] == first["losses"][14:]  # type: ignore[index]
    assert all(torch.equal(states[0][name], after["state"][name]) for name in states[0])  # type: ignore[index]
    record = json.loads((resumed / "checkpoints" / "step-00000028.json").read_text())
    assert record["world_size"] == 2


@pytest.mark.timeout(120)
def test_nodes_that_do_not_see_the_same_directory_are_found_and_named(tmp_path: Path) -> None:
    # Each rank starts in a folder of its own, so that a relative run directory is another place for each: as on two
    # nodes that share no disk.
    statements = (
        "import os\n"
        "from pipeline.cli import main\n"
        "os.makedirs(f'{sys.argv[2]}/{os.environ[\"RANK\"]}')\n"
        "os.chdir(f'{sys.argv[2]}/{os.environ[\"RANK\"]}')\n"
        "sys.exit(main(sys.argv[3:]))\n"
    )
    arguments = [str(argument) for argument in ROWS[2:]]
    program = ("-m", "tests.support.statements", statements, tmp_path / "nodes")
    ended = torchrun(2, *program, *arguments, "--model.out=x", "--run_dir=runs/x")
    assert ended.status != 0
    assert "run_dir='runs/x' is not the same place on all nodes" in ended.err
    assert ended.err.count("cannot see what rank 0 wrote there") == 1
    assert "exitcode  : 2" in ended.err
    assert list((tmp_path / "nodes" / "0" / "runs" / "x").iterdir()) == [], "the nonce is gone"


@pytest.mark.timeout(120)
def test_without_run_dir_all_ranks_take_the_same_one(tmp_path: Path) -> None:
    arguments = ("-m", "pipeline", "fit", "--config", ROOT / DIGITS, "--trainer.max_epochs=1")
    ended = torchrun(2, *arguments, cwd=tmp_path)
    assert ended.status == 0, ended.text
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits-1"]


def test_a_monitor_that_is_logged_on_rank_0_only_is_rank_0s(tmp_path: Path) -> None:
    ended = torchrun(2, *LOGS_ON_RANK_0, "--run_dir", tmp_path, "--checkpoints.monitor=mine", timeout=60)
    assert ended.status == 0, ended.text
    records = [json.loads(path.read_text())["monitor"] for path in sorted(tmp_path.glob("checkpoints/*.json"))]
    assert [record["value"] for record in records] == [1.0, 2.0]


@pytest.mark.slow
def test_a_monitor_that_no_rank_logs_is_one_message_on_two_ranks(tmp_path: Path) -> None:
    ended = torchrun(2, *LOGS_ON_RANK_0, "--run_dir", tmp_path, "--checkpoints.monitor=yours", timeout=60)
    assert ended.text.count("checkpoints.monitor='yours' is not logged by the model") == 1
    assert "Step 7 is saved" in ended.text or "Step 4 is saved" in ended.text


@pytest.mark.slow
def test_early_stopping_on_a_metric_of_rank_0_alone_ends_and_says_why(tmp_path: Path) -> None:
    agent = (sys.executable, "-m", "pipeline.agent", "--nproc-per-node=2", "--rdzv-backend=c10d")
    stopping = ("--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=mine")
    ended = command(*agent, "--rdzv-endpoint=localhost:0", *LOGS_ON_RANK_0, "--run_dir", tmp_path, *stopping)
    assert ended.status == 2, ended.text
    assert "EarlyStopping.monitor='mine' is not logged by the model" in ended.text
    assert "(rank 1 says so; log it on every rank)" in ended.text
