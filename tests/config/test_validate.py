"""What the configuration alone shows to be wrong is said at once, before anything is built."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import DIGITS, Ended, assert_one_message

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
