"""What a subcommand was asked for is left in its run, and replays anywhere."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.config.saved_config import changes
from pipeline.run.run_dir import RunDir
from tests.support.commands import DIGITS, QUICK, ROOT, Ended, assert_one_message

App = Callable[..., Ended]
FIT = ("fit", "--config", DIGITS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("test",), "run_dir is missing"),
        (("predict",), "run_dir is missing"),
        (("test", "--run_dir", "/nowhere"), "nothing was trained there"),
        (("test", "--config", DIGITS), "run_dir is missing"),
    ],
)
def test_a_subcommand_that_needs_a_run_names_what_is_missing(
    app: App, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    at = ("--run_dir", tmp_path / "x") if arguments[0] == "fit" and "run_dir" not in str(arguments) else ()
    assert_one_message(app(*arguments, *at), words)


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


def test_changes_are_named_key_by_key() -> None:
    saved = {"trainer": {"max_epochs": 1, "logger": None}, "data": {"init_args": {"n": 1}}}
    asked = {"trainer": {"max_epochs": 2, "logger": None}, "data": {"init_args": {"m": 1}}}
    assert changes(saved, asked) == [
        *("trainer.max_epochs 1 -> 2", "data.init_args.n 1 -> None", "data.init_args.m None -> 1"),
    ]
    assert changes(saved, saved) == []
    assert changes(None, asked) == []
