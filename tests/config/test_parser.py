"""Lightning's command line only parses and builds; what is built is what was asked for."""

import pytest

from pipeline.config.parser import CommandLine
from pipeline.data.datamodule import DataModule
from pipeline.errors import UserError
from pipeline.process.topology import Topology

FLAGS = (
    *("fit", "--model=tests.support.models.Regression", "--data=pipeline.data.DataModule"),
    *("--data.train=tests.support.models.Rows", "--data.batch_size=16", "--trainer.logger=false"),
)


def parsed(*flags: str) -> CommandLine:
    return CommandLine([*FLAGS, *flags], Topology.from_environment({}))


def test_parsing_builds_nothing_and_the_data_can_be_built_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*_: object, **__: object) -> None:
        raise AssertionError("the model was built")

    monkeypatch.setattr("tests.support.models.Regression.__init__", built)
    command = parsed("--ckpt_path=x.ckpt", "--run_dir=runs/x")
    assert (command.subcommand, command.given_checkpoint, command.asked.ckpt_path) == ("fit", "x.ckpt", None)
    data = command.build_data()
    assert isinstance(data, DataModule)
    assert data.batch_size == 16


def test_what_is_saved_leaves_out_the_place_and_the_topology() -> None:
    resolved = parsed("--ckpt_path=x.ckpt", "--run_dir=runs/x").resolved()
    assert resolved["ckpt_path"] == "x.ckpt"
    assert not {"run_dir", "config", "grace", "collective_timeout", "allow_mismatch"} & set(resolved)
    assert not {"devices", "num_nodes"} & set(resolved["trainer"])
    assert resolved == parsed("--ckpt_path=x.ckpt", "--grace=3").resolved()


def test_a_constructor_that_refuses_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match=r"data\.batch_size=0"):
        parsed("--data.batch_size=0").build_data()
