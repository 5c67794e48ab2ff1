"""Lightning's command line only parses and builds; what is built is what was asked for."""

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest

from pipeline.config.parser import CommandLine
from pipeline.data.datamodule import DataModule
from pipeline.errors import UserError
from pipeline.process.topology import Topology
from tests.support.commands import Ended

FLAGS = (
    *("fit", "--model=tests.support.models.Regression", "--data=pipeline.data.DataModule"),
    *("--data.train=tests.support.models.Rows", "--data.batch_size=16", "--trainer.logger=false"),
)


def parsed(*flags: str) -> CommandLine:
    return CommandLine([*FLAGS, *flags], Topology.from_environment({}))


def test_parsing_builds_nothing_and_the_data_can_be_built_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*_: object, **__: object) -> None:
        raise AssertionError("the model was built")

    monkeypatch.setattr("lightning.pytorch.LightningModule.__init__", built)  # whose parameters nobody remembers
    command = parsed("--ckpt_path=x.ckpt", "--run_dir=runs/x")
    assert (command.subcommand, command.given_checkpoint, command.asked.ckpt_path) == ("fit", "x.ckpt", None)
    data = command.build_data()
    assert isinstance(data, DataModule)
    assert data.batch_size == 16


class Named(pl.Callback):
    """Takes arguments that are called as those of whatever builds it may be."""

    def __init__(self, kind: str, args: int, klass: str = "", cls: str = "", config: str = "", path: str = "") -> None:
        self.given = (kind, args, klass, cls, config, path)


def test_any_name_will_do_for_an_argument_of_a_users_own_class(tmp_path: Path) -> None:
    given = {"kind": "a", "args": 3, "klass": "b", "cls": "c", "config": "d", "path": "e"}
    options = [f"--trainer.callbacks.{name}={value}" for name, value in given.items()]
    command = parsed(f"--run_dir={tmp_path}", f"--trainer.callbacks+={__name__}.Named", *options)
    command.build([], lambda: False)
    assert [each.given for each in command.trainer.callbacks if isinstance(each, Named)] == [tuple(given.values())]


@pytest.mark.parametrize(
    "inside",
    [
        {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "3", "SLURM_JOB_NAME": "x", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {"LSB_JOBID": "3", "LSB_DJOB_RANKFILE": "/none", "JSM_NAMESPACE_LOCAL_RANK": "0", "JSM_NAMESPACE_SIZE": "2"},
    ],
    ids=["slurm", "lsf"],
)
def test_one_process_within_a_job_of_more_tasks_is_one_process(
    app: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: dict[str, str]
) -> None:
    for name, value in inside.items():
        monkeypatch.setenv(name, value)
    ended = app(*FLAGS, "--trainer.max_epochs=1", "--checkpoints.monitor=null", "--run_dir", tmp_path / "run")
    assert ended.status == 0, ended.text
    assert "1 node x 1 process" in ended.text


def test_what_is_saved_leaves_out_the_place_and_the_topology() -> None:
    resolved = parsed("--ckpt_path=x.ckpt", "--run_dir=runs/x").resolved()
    assert resolved["ckpt_path"] == "x.ckpt"
    assert not {"run_dir", "config", "grace", "collective_timeout", "allow_mismatch"} & set(resolved)
    assert not {"devices", "num_nodes"} & set(resolved["trainer"])
    assert resolved == parsed("--ckpt_path=x.ckpt", "--grace=3").resolved()


def test_a_constructor_that_refuses_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"data\.batch_size=0"):
        parsed("--data.batch_size=0").build_data()


def test_a_file_beside_the_yaml_that_names_it_is_found_by_a_replay_and_by_what_looks_at_the_run(
    app: Callable[..., Ended], tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "rows.txt").write_text("12")
    (tmp_path / "own" / "own.yaml").write_text(
        "model: {class_path: tests.support.models.Regression}\n"
        "data:\n"
        "  class_path: pipeline.data.DataModule\n"
        "  init_args:\n"
        "    train: {class_path: tests.support.models.RowsOfFile, init_args: {file: rows.txt}}\n"
        "    test: {class_path: tests.support.models.RowsOfFile, init_args: {file: rows.txt}}\n"
        "    batch_size: 4\n"
        "trainer: {max_epochs: 1, enable_model_summary: false}\n"
    )
    run, replay = tmp_path / "run", tmp_path / "replay"
    for arguments in (
        ("fit", "--config", tmp_path / "own" / "own.yaml", "--run_dir", run),
        ("test", "--run_dir", run),
        ("explain_resume", "--run_dir", run),
        ("fit", "--config", run / "fit.yaml", "--run_dir", replay),
        ("fit", "--config", tmp_path / "own" / "own.yaml", "--run_dir", run),
    ):
        ended = app(*arguments)
        assert ended.status == 0, ended.text
    assert "finished: " in ended.err
    assert str(tmp_path / "own" / "rows.txt") in (replay / "fit.yaml").read_text()
