"""Each error of the parser becomes one line with the name, the value and the nearest allowed name."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.messages import constructor_problems
from pipeline.errors import StorageAway, UserError
from tests.support.commands import DIGITS, Ended, assert_one_message

App = Callable[..., Ended]
FIT = ("fit", "--config", DIGITS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*FIT, "--trainer.max_epoch=3"), "did you mean 'trainer.max_epochs'?"),
        ((*FIT, "--run_dirr=x"), "did you mean 'run_dir'?"),
        ((*FIT, "--trainer.max_epochs=many"), "trainer.max_epochs='many': Expected a int"),
        ((*FIT, "--data.batchsize=3"), "did you mean 'batch_size'?"),
        ((*FIT, "--model.learnin_rate=3"), "did you mean 'learning_rate'?"),
        ((*FIT, "--model=nowhere.Model"), "model='nowhere.Model'"),
        ((*FIT, "--model=pipeline.examples.autoencoder.Missing"), "autoencoder.py, which defines no Missing"),
        ((*FIT, "--trainer.callbacks=Nothing"), "trainer.callbacks='Nothing'"),
        ((*FIT, "--trainer.callbacks=tests.support.models.Rows"), "it is no subclass of Callback"),
        ((*FIT, "--trainer.logger=TensorBordLogger"), "did you mean 'TensorBoardLogger'?"),
        ((*FIT, "--trainer.strategy=deepspeed_stage_2"), "save many"),
        (("fit", "--config", "missing.yaml"), "missing.yaml"),
    ],
)
def test_what_the_parser_refuses_is_one_message(
    app: App, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    at = ("--run_dir", tmp_path / "x") if arguments[0] == "fit" and "run_dir" not in str(arguments) else ()
    assert_one_message(app(*arguments, *at), words)


@pytest.mark.parametrize(
    "text", ["training: {max_epochs: 1}", "trainer: {max_epoch: 1}", "model: {init_args: {dim: 1}}", "a: ["]
)
def test_a_misspelt_yaml_key_is_refused(app: App, tmp_path: Path, text: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    ended = app(*FIT, "--config", tmp_path / "own.yaml", "--run_dir", tmp_path / "run")
    assert ended.status == 2
    assert not (tmp_path / "run").exists()
    assert "Traceback" not in ended.err


def test_a_constructor_whose_storage_is_away_is_no_mistake_of_the_user() -> None:
    with (
        pytest.raises(StorageAway, match="building data, model and trainer: ConnectionResetError: by peer"),
        constructor_problems(),
    ):
        raise ConnectionResetError("by peer")
    outer = OSError("while reading")
    outer.__cause__ = ValueError("size=0 must be >= 1")
    with pytest.raises(UserError, match="size=0 must be >= 1"), constructor_problems():
        raise outer
    with pytest.raises(UserError, match="No such file"), constructor_problems():
        raise FileNotFoundError(2, "No such file", "x")
