"""A worker is not started for an agent that is gone, nor where there is no such program."""

import os
import sys

import pytest

from pipeline.agent import pdeathsig
from tests.support.commands import ROOT, command


@pytest.mark.parametrize(
    ("agent", "program", "status", "out", "err"),
    [
        ("itself", (sys.executable, "-c", "print('started')"), 0, "started\n", ""),
        ("another", (sys.executable, "-c", "print('started')"), 137, "", ""),
        (
            "itself",
            ("no-such-program",),
            2,
            "",
            "error: 'no-such-program' cannot be started: No such file or directory\n",
        ),
    ],
)
def test_the_program_is_started_for_its_own_agent_alone(
    agent: str, program: tuple[str, ...], status: int, out: str, err: str
) -> None:
    pid = os.getpid() if agent == "itself" else os.getppid()
    ended = command(sys.executable, "-I", "-S", ROOT / pdeathsig.__file__, pid, *program)
    assert (ended.status, ended.out, ended.err) == (status, out, err)
