"""The agent's command line is torchrun's, and costs no import of torch."""

import sys

import pytest
from torch.distributed.run import get_args_parser

from pipeline.agent.arguments import parser
from tests.support.commands import command

OURS = {"preflight", "standby"}
NEWER = {"log_line_prefix_template", "print_completion"}
"""Options of torch 2.14 that have their defaults here."""
SINCE = {
    "duplicate_stdout_filters",
    "duplicate_stderr_filters",
    "signals_to_handle",
    "virtual_local_rank",
    "shutdown_timeout",
}
"""Options that an older torch of the declared range does not have."""
CHANGED = {"master_port", "max_restarts"}
"""Options with another default: 29500 or None, by the version, for one that is ignored; 3 restarts instead of none."""


def test_the_options_are_those_of_torchrun_with_its_defaults() -> None:
    torchs, ours = vars(get_args_parser().parse_args(["script"])), vars(parser().parse_args(["script"]))
    assert torchs.keys() - NEWER <= ours.keys()
    assert ours.keys() - torchs.keys() <= OURS | SINCE
    alike = torchs.keys() - NEWER - CHANGED
    assert {name: ours[name] for name in alike} == {name: torchs[name] for name in alike}
    flags, known = set(get_args_parser()._option_string_actions), set(parser()._option_string_actions)
    assert {flag for flag in flags if flag.strip("-").replace("-", "_") not in NEWER} <= known


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nproc-per-node=2", "--duplicate_stdout_filters=a,,b,c", "-m", "a.b", "--nnodes", "3"],
        ["-r", "3", "-t", "0:1", "--standalone", "--max_restarts", "4", "--monitor-interval=2", "x.py", "-m"],
    ],
)
def test_a_command_line_is_read_as_torchrun_reads_it(arguments: list[str]) -> None:
    ours = vars(parser().parse_args(arguments))
    torchs = vars(get_args_parser().parse_args(arguments))
    alike = (torchs.keys() & ours.keys()) - CHANGED
    assert {name: ours[name] for name in alike} == {name: torchs[name] for name in alike}


def test_the_environment_gives_defaults_as_it_does_to_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MAX_RESTARTS": "5", "STANDALONE": "1", "RDZV_ENDPOINT": "a:1"}.items():
        monkeypatch.setenv(f"PET_{name}", value)
    read = parser().parse_args(["script"])
    assert (read.max_restarts, read.standalone, read.rdzv_endpoint) == (5, True, "a:1")


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--help"], 0), (["--no-such-option"], 2), (["--rdzv-backend=etcd", "x.py"], 2)]
)
def test_help_and_mistakes_do_not_import_torch(arguments: list[str], status: int) -> None:
    program = (
        "import sys\n"
        "from pipeline.agent.__main__ import main\n"
        "try:\n    status = main(sys.argv[1:])\n"
        "except SystemExit as end:\n    status = end.code or 0\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(status)"
    )
    ended = command(sys.executable, "-c", program, *arguments)
    assert ended.status == status, ended.text


def test_a_crash_is_restarted_three_times_unless_asked_otherwise() -> None:
    assert parser().parse_args(["script"]).max_restarts == 3
