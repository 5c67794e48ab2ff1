import json
import subprocess
import sys


def test_it_trains_on_two_nodes_of_this_machine_and_every_test_sample_is_scored_once(tmp_path):
    run = tmp_path / "run"
    ended = subprocess.run(
        [sys.executable, "-m", "components.launch", "--nodes", "2", "--cpu", "1"]
        + ["--config", "configs/train.yaml", "--run_dir", run, "--", "--trainer.max_epochs=2"],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout
    receipt = json.loads((run / "evaluation" / "receipt.json").read_text())
    assert receipt["samples_scored"] == receipt["samples_expected"] == 400
    assert receipt["metrics"]["test_loss"] < 0.7
