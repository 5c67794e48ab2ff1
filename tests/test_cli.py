"""The app: Lightning's flags and YAML, each hazard solved, each mistake one clear message."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.run.run_dir import RunDir
from tests.support.commands import DIGITS, QUICK, ROOT, Ended, command

App = Callable[..., Ended]
FIT = ("fit", "--config", DIGITS)


@pytest.mark.parametrize(
    "subcommand", ["", "fit", "validate", "test", "predict", "summary", "verify", "explain_resume", "prune", "probe"]
)
def test_help_explains_every_subcommand(app: App, subcommand: str) -> None:
    ended = app(*filter(None, (subcommand, "--help")))
    assert ended.status == 0
    if subcommand not in ("", "summary", "probe"):
        assert "--run_dir" in ended.out
    for name in re.findall(r"\{([a-z_,]+)\}", ended.out)[0].split(",") if not subcommand else ():
        assert name in ended.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fitt",), "'fitt'"),
        ((), "fit,validate,test,predict,summary"),
        ((*FIT, "--trainer.max_epoch=3"), "did you mean 'trainer.max_epochs'?"),
        ((*FIT, "--run_dirr=x"), "did you mean 'run_dir'?"),
        ((*FIT, "--trainer.max_epochs=many"), "trainer.max_epochs='many': Expected a int"),
        ((*FIT, "--data.batchsize=3"), "did you mean 'batch_size'?"),
        ((*FIT, "--model.learnin_rate=3"), "did you mean 'learning_rate'?"),
        ((*FIT, "--model=nowhere.Model"), "model='nowhere.Model'"),
        ((*FIT, "--model=pipeline.examples.autoencoder.Missing"), "no attribute 'Missing'"),
        ((*FIT, "--data.batch_size=0", "--data.num_workers=-1"), "data.num_workers=-1: allowed are 0"),
        ((*FIT, "--data.train.init_args.split=dev"), "split='dev': allowed are 'train', 'val', 'test'"),
        ((*FIT, "--checkpoints.mode=least"), "checkpoints.mode='least'"),
        ((*FIT, "--trainer.callbacks=Nothing"), "trainer.callbacks='Nothing'"),
        ((*FIT, "--trainer.devices=3"), "trainer.devices='3', but the launcher started 1"),
        ((*FIT, "--trainer.num_nodes=3"), "trainer.num_nodes=3"),
        ((*FIT, "--trainer.strategy=fsdp"), "trainer.strategy='fsdp'"),
        ((*FIT, "--trainer.strategy=deepspeed_stage_2"), "save many"),
        ((*FIT, "--trainer.accelerator=cuda"), "CUDAAccelerator"),
        ((*FIT, "--ckpt_path=last"), "fit goes on by itself"),
        ((*FIT, "--run_dir=nosuch://x"), "run_dir='nosuch://x'"),
        ((*FIT, "--run_dir=/dev/null/x"), "run_dir='/dev/null/x' cannot be written"),
        (("fit", "--config", "missing.yaml"), "missing.yaml"),
        (("test",), "run_dir is missing"),
        (("predict",), "run_dir is missing"),
        (("test", "--run_dir", "/nowhere"), "nothing was trained there"),
        (("test", "--config", DIGITS), "run_dir is missing"),
        (("summary", "--config", DIGITS, "--max_depth=-2"), "max_depth=-2"),
    ],
)
def test_a_mistake_is_one_clear_message_and_status_2(
    app: App, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    place = (
        ()
        if any("run_dir" in a for a in arguments) or arguments[:1] != ("fit",)
        else ("--run_dir", str(tmp_path / "x"))
    )
    ended = app(*arguments, *place)
    assert ended.status == 2
    assert words in ended.err
    assert "Traceback" not in ended.text
    assert len(ended.err.strip().splitlines()) <= 2, "one line for each problem"


def test_all_problems_are_said_at_once(app: App) -> None:
    ended = app(*FIT, "--trainer.devices=3", "--trainer.strategy=fsdp", "--ckpt_path=last")
    assert [line.split("=")[0] for line in ended.err.splitlines()] == [
        *("error: trainer.devices", "error: trainer.strategy", "error: ckpt_path")
    ]


@pytest.mark.parametrize(
    "text", ["training: {max_epochs: 1}", "trainer: {max_epoch: 1}", "model: {init_args: {dim: 1}}", "a: ["]
)
def test_a_misspelt_yaml_key_is_refused(app: App, tmp_path: Path, text: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    ended = app(*FIT, "--config", tmp_path / "own.yaml", "--run_dir", tmp_path / "run")
    assert ended.status == 2
    assert not (tmp_path / "run").exists()
    assert "Traceback" not in ended.err


def test_a_mistake_costs_no_more_than_the_imports(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*_: object, **__: object) -> None:
        raise AssertionError("a dataset was read for a command that cannot run")

    monkeypatch.setattr("pipeline.examples.digits.Digits.__init__", built)
    assert app(*FIT, "--trainer.strategy=fsdp").status == 2


def test_flags_override_yaml_overrides_defaults(app: App, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("trainer: {max_epochs: 2, log_every_n_steps: 7}")
    run = tmp_path / "run"
    assert app(*FIT, "--config", tmp_path / "own.yaml", *QUICK, "--trainer.max_epochs=1", "--run_dir", run).status == 0
    resolved = yaml.safe_load((run / "fit.yaml").read_text())
    assert (resolved["trainer"]["max_epochs"], resolved["trainer"]["log_every_n_steps"]) == (1, 7)
    assert resolved["trainer"]["accumulate_grad_batches"] == 1


def test_the_resolved_configuration_replays_anywhere(app: App, storage: str) -> None:
    first, second = f"{storage}-1", f"{storage}-2"
    assert app(*FIT, *QUICK, "--trainer.limit_train_batches=3", "--run_dir", first).status == 0
    resolved = yaml.safe_load(RunDir(first).read("fit.yaml") or b"")
    assert not {"run_dir", "config"} & set(resolved)
    assert not {"devices", "num_nodes"} & set(resolved["trainer"])
    assert app("fit", "--config", RunDir(first).url_of("fit.yaml"), "--run_dir", second).status == 0
    assert RunDir(second).read("fit.yaml") == RunDir(first).read("fit.yaml")
    for name in (RunDir.checkpoint(3), RunDir.checkpoint(6)):
        assert RunDir(second).size(name) == RunDir(first).size(name)


def test_each_subcommand_saves_its_own_configuration_again_and_again(app: App, tmp_path: Path) -> None:
    assert app(*FIT, *QUICK, "--run_dir", tmp_path).status == 0
    for _ in range(2):
        for subcommand in ("validate", "test", "predict"):
            ended = app(subcommand, "--run_dir", tmp_path)
            assert ended.status == 0, ended.err
            assert (
                yaml.safe_load((tmp_path / f"{subcommand}.yaml").read_text())["model"]["init_args"]["input_dim"] == 64
            )


def test_without_run_dir_runs_count_up_by_the_name_of_the_config(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = str(ROOT / DIGITS)
    for expected in ("digits-1", "digits-2"):
        monkeypatch.chdir(tmp_path)
        assert app("fit", "--config", config, *QUICK).status == 0
        assert (tmp_path / "runs" / expected / "fit.yaml").exists()


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


def test_a_run_directory_in_memory_is_refused(app: App) -> None:
    ended = app(*FIT, "--run_dir", "memory://x")
    assert ended.status == 2
    assert "lives within one process" in ended.err


def test_the_default_seed_is_a_number_so_that_all_ranks_share_it(app: App, tmp_path: Path) -> None:
    arguments = (
        "fit",
        "--model",
        "tests.support.models.Regression",
        "--data",
        "tests.support.models.Own",
        "--trainer.max_epochs=1",
    )
    assert app(*arguments, "--run_dir", tmp_path).status == 0
    assert yaml.safe_load((tmp_path / "fit.yaml").read_text())["seed_everything"] == 42


@pytest.mark.parametrize(
    "config", sorted((ROOT / "pipeline" / "configs").glob("*.yaml"), key=str), ids=lambda p: p.stem
)
def test_every_configuration_parses_and_its_model_can_be_summarised(app: App, config: Path) -> None:
    assert app("summary", "--config", config).status == 0
    ended = app("fit", "--config", config, "--print_config")
    assert ended.status == 0, ended.err
    assert yaml.safe_load(ended.out)["trainer"]["max_epochs"] >= 1
