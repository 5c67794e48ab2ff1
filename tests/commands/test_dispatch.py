"""The commands that need no model start without what they do not need, and end with a status to act on."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commands import dispatch
from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended, command

App = Callable[..., Ended]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("prune", "--run_dir=runs/none"), "keep_last"),
        (("prune", "--run_dir=runs/none", "--keep_last=0"), "keep_last=0 must be >= 1"),
        (("prune", "--run_dir=runs/none", "--keep_last=1"), "has no good checkpoint"),
        (("prune", "--run_dir=s3://pipeline-tests-no-such-bucket/x", "--keep_last=1"), "has no good checkpoint"),
        (("verify", "--run_dir=runs/none"), "has no checkpoint"),
        (("verify",), "run_dir"),
        (("probe",), "url"),
        (("probe", "runs", "--megabytes=0"), "megabytes=0 must be >= 1"),
        (("probe", "runs", "--megabytes=x"), "megabytes"),
        (("probe", "nonsense://x"), "nonsense"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_a_mistake_gets_one_clear_message(app: App, arguments: tuple[str, ...], said: str) -> None:
    ended = app(*arguments)
    assert ended.status == 2, ended.text
    assert said in ended.err
    assert "Traceback" not in ended.text
    assert not ended.out


def test_a_folder_that_may_not_be_read_is_the_user_s_to_mend(app: App, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file in the place of the folder")
    for arguments in (("verify",), ("prune", "--keep_last=1")):
        ended = app(*arguments, "--run_dir", tmp_path / "run")
        assert ended.status == 2, ended.text
        assert "Traceback" not in ended.text


def test_a_probe_says_whether_a_storage_can_carry_a_run(app: App, storage: str) -> None:
    good = app("probe", storage, "--megabytes=2")
    assert good.status == 0
    assert "this store can carry a run" in good.out
    assert list(RunDir(storage).fs.find(RunDir(storage).path)) == [], "nothing is left there"
    bad = app("probe", "/sys/pipeline-probe", "--megabytes=1")
    assert bad.status == 2
    assert "fix what FAILED" in bad.out


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        (("--help",), "torch lightning jsonargparse"),
        (("verify", "--help"), "torch lightning jsonargparse"),
        (("explain", "--help"), "torch lightning jsonargparse"),
        (("drill", "--help"), "torch lightning jsonargparse"),
        (("prune", "--help"), "torch lightning jsonargparse"),
        (("probe", "{folder}", "--megabytes=1"), "torch lightning jsonargparse"),
        (("verify", "--run_dir=runs/none"), "lightning jsonargparse"),
    ],
)
def test_a_command_imports_only_what_it_needs(tmp_path: Path, arguments: tuple[str, ...], unwanted: str) -> None:
    program = (
        "import sys; from pipeline.__main__ import run\n"
        "try: run()\n"
        "except SystemExit: pass\n"
        f"print([name for name in '{unwanted}'.split() if name in sys.modules])"
    )
    ended = command(sys.executable, "-c", program, *(each.format(folder=tmp_path / "x") for each in arguments))
    assert ended.out.splitlines()[-1] == "[]", ended.text


def test_the_help_lists_every_subcommand_of_lightning() -> None:
    from pipeline.config.parser import CommandLine

    assert set(dispatch.TRAINING) == set(CommandLine.subcommands())
