"""The app: Lightning's flags and YAML, each hazard solved, each mistake one clear message."""

import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from pipeline.run.run_dir import RunDir
from tests.support.commands import DIGITS, QUICK, ROOT, Ended, assert_one_message, command

App = Callable[..., Ended]
FIT = ("fit", "--config", DIGITS)


@pytest.mark.parametrize(
    "subcommand",
    ["", "fit", "validate", "test", "predict", "summary", "data", "verify", "explain_resume", "prune", "probe"],
)
def test_help_explains_every_subcommand(app: App, subcommand: str) -> None:
    ended = app(*filter(None, (subcommand, "--help")))
    assert ended.status == 0
    if subcommand not in ("", "summary", "data", "probe"):
        assert "--run_dir" in ended.out
    for name in re.findall(r"\{([a-z_,]+)\}", ended.out)[0].split(",") if not subcommand else ():
        assert name in ended.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fitt",), "'fitt'"),
        ((), "fit,validate,test,predict,summary,data"),
        ((*FIT, "--data.batch_size=0", "--data.num_workers=-1"), "data.num_workers=-1 must be >= 0"),
        ((*FIT, "--data.train.init_args.split=dev"), "split='dev' must be one of 'train', 'val', 'test'"),
        ((*FIT, "--checkpoints.mode=least"), "checkpoints.mode='least'"),
        ((*FIT, "--trainer.accelerator=cuda"), "trainer.accelerator='cuda'"),
        ((*FIT, "--run_dir=nosuch://x"), "run_dir='nosuch://x'"),
        ((*FIT, "--run_dir=/dev/null/x"), "run_dir='/dev/null/x' cannot be written"),
        (("summary", "--config", DIGITS, "--max_depth=-2"), "max_depth=-2"),
    ],
)
def test_a_mistake_is_one_clear_message_and_status_2(
    app: App, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    at = ("--run_dir", tmp_path / "x") if arguments[:1] == ("fit",) and "run_dir" not in str(arguments) else ()
    assert_one_message(app(*arguments, *at), words)


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        (("--trainer.max_epochs=1", "--trainer.limit_train_batches=5"), 5),
        (("--trainer.max_epochs=1", "--trainer.limit_train_batches=0.1"), 4),
        (("--trainer.max_epochs=2", "--trainer.limit_train_batches=5", "--trainer.limit_val_batches=2"), 10),
        (("--trainer.max_epochs=2", "--trainer.limit_train_batches=5", "--trainer.limit_val_batches=0.5"), 10),
        (("--trainer.max_steps=7",), 7),
        (("--trainer.max_epochs=1", "--trainer.accumulate_grad_batches=4"), 10),
    ],
)
def test_the_trainers_flags_do_what_they_say(app: App, tmp_path: Path, flags: tuple[str, ...], steps: int) -> None:
    ended = app(*FIT, "--trainer.enable_model_summary=false", *flags, "--run_dir", tmp_path)
    assert ended.status == 0, ended.err
    assert f"finished: step {steps}," in ended.err
    assert max(RunDir(str(tmp_path)).steps()["json"]) == steps


@pytest.mark.parametrize(("value", "steps"), [("true", 1), ("7", 7)])
def test_fast_dev_run_writes_nothing(app: App, tmp_path: Path, value: str, steps: int) -> None:
    config = str(ROOT / DIGITS)
    ended = app("fit", "--config", config, f"--trainer.fast_dev_run={value}", "--run_dir", tmp_path / "run")
    assert ended.status == 0
    assert f"trained {steps} step" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_the_weights_summary_is_off_by_flag() -> None:
    arguments = (sys.executable, "-m", "pipeline", *FIT, "--trainer.fast_dev_run=true")
    assert "Total params" in command(*arguments).text
    assert "Total params" not in command(*arguments, "--trainer.enable_model_summary=false").text


def test_callbacks_are_added_by_class_path_and_lists_are_extended(app: App, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("trainer: {callbacks: [{class_path: tests.support.models.WritesAsItIsRead}]}")
    ended = app(
        *(*FIT, "--config", tmp_path / "own.yaml", "--trainer.fast_dev_run=true"),
        *("--trainer.callbacks+=tests.support.models.WritesAsItIsRead", "--trainer.callbacks.word=again"),
    )
    assert ended.status == 0, ended.err
    assert "callback says hello" in ended.err
    assert "callback says again" in ended.err


def test_what_is_always_on_stays_on_beside_the_users_callbacks(app: App, tmp_path: Path) -> None:
    flags = ("--trainer.callbacks=LearningRateMonitor", "--trainer.max_epochs=1")
    assert app(*FIT, *flags, "--run_dir", tmp_path).status == 0
    assert list(tmp_path.glob("checkpoints/*.json"))


def test_validate_and_predict_use_the_runs_checkpoint(app: App, tmp_path: Path) -> None:
    assert app(*FIT, *QUICK, "--run_dir", tmp_path).status == 0
    for subcommand in ("validate", "predict"):
        ended = app(subcommand, "--run_dir", tmp_path, "--checkpoint", "latest")
        assert ended.status == 0, ended.err


@pytest.mark.parametrize(
    "config", sorted((ROOT / "pipeline" / "configs").glob("*.yaml"), key=str), ids=lambda p: p.stem
)
def test_every_configuration_parses_and_its_model_can_be_summarised(app: App, config: Path) -> None:
    if "transformers" in config.read_text() and find_spec("transformers") is None:
        pytest.skip("transformers is not installed: make test-integrations")
    assert app("summary", "--config", config).status == 0
    ended = app("fit", "--config", config, "--print_config")
    assert ended.status == 0, ended.err
    assert yaml.safe_load(ended.out)["trainer"]["max_epochs"] >= 1
