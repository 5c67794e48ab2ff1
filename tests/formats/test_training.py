"""Each configuration of docs/formats.md trains on two processes, resumes bit for bit, and leaves a receipt."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import formats
from tests.support.commands import ROOT, Ended, torchrun
from tests.support.resumes import same_end

BLOCKS = dict(
    re.findall(r"^## ([^\n]+)\n\n```yaml\n(.*?)```", (ROOT / "docs/formats.md").read_text(), re.DOTALL | re.MULTILINE)
)
MODEL = """
seed_everything: 1
model:
  class_path: pipeline.examples.autoencoder.LitAutoEncoder
  init_args: {learning_rate: 0.003, input_dim: 64}
trainer: {max_epochs: 2, enable_model_summary: false, logger: false}
checkpoints: {every_n_steps: 1}
"""
SAMPLES = {"Tables": 16, "Hugging Face datasets": 16, "Images": 16, "Tar shards": 16, "Arrays": 48}


def written(url: str, folder: Path) -> dict[str, Path]:
    """All that the configurations name, and the configurations."""
    for split, count in (("train", 48), ("test", 16)):
        formats.write_table(f"{url}/table/{split}", count)
        formats.write_saved(f"{url}/saved/{split}", count)
        formats.write_images(f"{url}/images/{split}", count)
    formats.write_shards(f"{url}/shards")
    formats.write_arrays(f"{url}/arrays")
    configs = {}
    for name, block in BLOCKS.items():
        configs[name] = folder / f"{name.split()[0].lower()}.yaml"
        configs[name].write_text(MODEL + block.replace("s3://bucket", url))
    return configs


def test_every_format_has_a_configuration() -> None:
    assert set(BLOCKS) == set(SAMPLES)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_format_resumes_bit_for_bit_and_is_evaluated(
    storage: str, tmp_path: Path, app: Callable[..., Ended]
) -> None:
    configs = written(storage, tmp_path)
    plan = []
    for name, config in configs.items():
        straight, resumed = tmp_path / f"{name} straight", tmp_path / f"{name} resumed"
        workers = f"--data.num_workers={int(name == 'Tables')}"
        # 48 samples by 2 x 4 are 6 steps an epoch: step 8 is in the middle of the second one.
        plan += [
            ["fit", "--config", str(config), "--run_dir", str(straight), workers],
            ["only", str(straight), str(resumed), "8"],
            ["fit", "--config", str(config), "--run_dir", str(resumed), workers],
        ]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    ended = torchrun(2, "-m", "tests.support.rank_runner", tmp_path / "plan.json", timeout=600)
    assert ended.status == 0, ended.text
    assert ended.err.count("resumed at step 8") == len(configs)
    for name in configs:
        same_end(tmp_path / f"{name} straight", tmp_path / f"{name} resumed")
        assert app("verify", "--run_dir", tmp_path / f"{name} resumed").status == 0, name
        ended = app("test", "--run_dir", tmp_path / f"{name} resumed")
        assert ended.status == 0, ended.err
        receipt = json.loads((tmp_path / f"{name} resumed/evaluation/receipt.json").read_text())
        assert receipt["samples_scored"] == receipt["samples_expected"] == SAMPLES[name]
        assert (receipt["duplicates"], receipt["missing"]) == (0, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_ends_a_fit_with_one_message(workers: int, tmp_path: Path, app: Callable[..., Ended]) -> None:
    url = formats.write_images(str(tmp_path / "images"))
    victim = next((tmp_path / "images/3").iterdir())
    victim.write_bytes(victim.read_bytes()[:70])
    config = tmp_path / "images.yaml"
    config.write_text(MODEL + BLOCKS["Images"].replace("s3://bucket/images/train", url).replace("s3://bucket", url))
    more = ("--data.test=null", f"--data.num_workers={workers}")
    ended = app("fit", "--config", config, "--run_dir", tmp_path / "run", *more)
    assert ended.status == 2, ended.text
    assert f"3/{victim.name} (70 bytes) is no whole picture" in ended.err
    assert "Traceback" not in ended.text


def test_a_misspelt_column_ends_a_fit_with_its_neighbour(tmp_path: Path, app: Callable[..., Ended]) -> None:
    url = formats.write_table(str(tmp_path / "table"))
    config = tmp_path / "table.yaml"
    config.write_text(MODEL + BLOCKS["Tables"].replace("s3://bucket/table/train", url).replace("[pixels", "[pixel"))
    ended = app("fit", "--config", config, "--run_dir", tmp_path / "run", "--data.test=null")
    assert ended.status == 2, ended.text
    assert "part-0.parquet has no column 'pixel' (it has pixels, label, name); did you mean 'pixels'?" in ended.err
    assert "Traceback" not in ended.text
