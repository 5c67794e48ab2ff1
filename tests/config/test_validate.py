"""What the configuration alone shows to be wrong is said at once, before anything is built."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.commands import DIGITS, Ended, assert_one_message
from tests.support.runs import FIT as ROWS_FIT

App = Callable[..., Ended]
FIT = ("fit", "--config", DIGITS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*FIT, "--trainer.devices=3"), "trainer.devices='3', but the launcher started 1"),
        ((*FIT, "--trainer.num_nodes=3"), "trainer.num_nodes=3"),
        ((*FIT, "--trainer.strategy=fsdp"), "trainer.strategy='fsdp'"),
        ((*FIT, "--trainer.strategy=deepspeed_stage_2"), "save many"),
        ((*FIT, "--ckpt_path=last"), "fit resumes by itself"),
        ((*FIT, "--ckpt_path=best"), "fit resumes by itself"),
        ((*FIT, "--seed_everything=-1"), "seed_everything=-1 must be >= 0 and < 2**32"),
        ((*FIT, "--seed_everything=4294967296"), "seed_everything=4294967296 must be >= 0"),
        ((*FIT, "--seed_everything=1.5"), "seed_everything='1.5'"),
        ((*FIT, "--trainer.devices=[3]"), "name others by CUDA_VISIBLE_DEVICES"),
        ((*FIT, "--trainer.val_check_interval=0"), "trainer.val_check_interval=0 must be > 0"),
        ((*FIT, "--trainer.accelerator=tpu"), "pip install -U 'torch_xla"),
        ((*FIT, "--trainer.accelerator=mps"), "not available"),
        ((*FIT, "--trainer.accelerator=nothing"), "invalid accelerator name"),
        ((*FIT, "--trainer.precision=transformer-engine"), "pip install -U 'transformer_engine"),
        ((*FIT, "--trainer.profiler=xla"), "torch_xla"),
        ((*FIT, "--run_dir", ""), "run_dir='' is empty"),
    ],
)
def test_what_cannot_be_trained_is_one_message(
    app: App, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    at = ("--run_dir", tmp_path / "x") if arguments[0] == "fit" and "run_dir" not in str(arguments) else ()
    assert_one_message(app(*arguments, *at), words)


def test_all_problems_are_said_at_once(app: App) -> None:
    ended = app(*FIT, "--trainer.devices=3", "--trainer.strategy=fsdp", "--ckpt_path=last")
    assert [line.split("=")[0] for line in ended.err.splitlines()] == [
        *("error: trainer.devices", "error: trainer.strategy", "error: ckpt_path")
    ]


def test_a_mistake_costs_no_more_than_the_imports(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*_: object, **__: object) -> None:
        raise AssertionError("a dataset was read for a command that cannot run")

    monkeypatch.setattr("pipeline.examples.digits.Digits.__init__", built)
    assert app(*FIT, "--trainer.strategy=fsdp").status == 2


def test_a_run_directory_in_memory_is_refused(app: App) -> None:
    ended = app(*FIT, "--run_dir", "memory://x")
    assert ended.status == 2
    assert "lives within one process" in ended.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
@pytest.mark.parametrize("name", ["gpu", "cuda"])
def test_gpus_that_are_not_there_are_one_message(app: App, tmp_path: Path, name: str) -> None:
    ended = app(*FIT, f"--trainer.accelerator={name}", "--run_dir", tmp_path / "run")
    assert_one_message(ended, f"trainer.accelerator='{name}': torch {torch.__version__} can use no GPU here")


@pytest.mark.parametrize(("model", "status"), [("Normalized", 2), ("Regression", 0)])
def test_batchnorm_over_ranks_on_cpus_is_refused_where_the_model_has_any(
    app: App, tmp_path: Path, model: str, status: int
) -> None:
    ddp = ("--trainer.sync_batchnorm=true", "--trainer.strategy=ddp", "--trainer.max_epochs=1")
    # The last one counts.
    ended = app(*ROWS_FIT, f"--model=tests.support.models.{model}", *ddp, "--run_dir", tmp_path / "run")
    assert ended.status == status, ended.err
    assert ("trainer.sync_batchnorm=True: torch synchronizes BatchNorm over GPUs only" in ended.err) == (status == 2)
    assert "Traceback" not in ended.text
