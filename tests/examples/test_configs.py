"""The examples that come with the package are killed, resumed bit for bit, and evaluated, each sample once."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.commands import ROOT, command

CONFIGS = {
    "transformer": "--data.batch_size=2",
    "gan": "",
    "classifier": "",
    "bert": "",
    "resnet": "--trainer.sync_batchnorm=false",
}
"""The flags of each beside `SHORT`; digits.yaml is drilled by other tests, and mnist.yaml needs a download."""
SHORT = "--trainer.max_epochs=2 --trainer.limit_train_batches=12 --trainer.limit_val_batches=2"
FOREIGN = {"bert": "transformers", "resnet": "transformers"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CONFIGS)
def test_killed_on_two_nodes_it_ends_in_the_same_weights_and_scores_each_sample_once(tmp_path: Path, name: str) -> None:
    if name in FOREIGN and find_spec(FOREIGN[name]) is None:
        pytest.skip(f"{FOREIGN[name]} is not installed: make test-integrations")
    config = ROOT / "pipeline" / "configs" / f"{name}.yaml"
    drill = ("--faults", 2, "--kinds", "kill_rank,kill_all", f"--args={SHORT} {CONFIGS[name]}")
    pipeline = (sys.executable, "-m", "pipeline")
    ended = command(*pipeline, "drill", "--config", config, "--run_dir", tmp_path, *drill, timeout=600)
    assert ended.status == 0, ended.out + ended.err
    compared = {each["name"]: each for each in json.loads((tmp_path / "drill.json").read_text())["comparisons"]}
    assert "bit for bit" in compared["weights"]["found"]
    assert all(each["holds"] for each in compared.values())
    ended = command(*pipeline, "test", "--run_dir", tmp_path / "drilled")
    assert ended.status == 0, ended.err
    receipt = json.loads((tmp_path / "drilled" / "evaluation" / "receipt.json").read_text())
    assert (receipt["samples_scored"], receipt["duplicates"], receipt["missing"]) == (360, 0, 0)


def test_no_example_is_left_out() -> None:
    assert {path.stem for path in (ROOT / "pipeline" / "configs").glob("*.yaml")} == {*CONFIGS, "digits", "mnist"}
