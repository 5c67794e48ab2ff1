"""Nobody may be there to read what a process prints: it ends as it would have all the same."""

import os
import pty
import subprocess
import sys

import pytest

from tests.support.commands import ROOT

PROGRAM = """
import sys
from pipeline.process.output import drop_lost_output, flush_output, print_line
sys.stdin.readline()
{act}
print("a user's own line", flush=True)
flush_output()
sys.exit(75)
"""


@pytest.mark.parametrize("kind", ["terminal", "pipe"])
@pytest.mark.parametrize("act", ["print_line('x')", "drop_lost_output()"])
def test_lines_that_nobody_reads_change_no_status(kind: str, act: str) -> None:
    ours, theirs = pty.openpty() if kind == "terminal" else os.pipe()
    program = [sys.executable, "-c", PROGRAM.format(act=act)]
    process = subprocess.Popen(program, cwd=ROOT, stdin=subprocess.PIPE, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.close(ours)
    process.communicate(b"\n", 30)
    assert process.returncode == 75


def test_what_somebody_reads_is_kept() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(act="drop_lost_output()")],
        input=b"",
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert ended.stdout.decode().splitlines() == ["a user's own line"]
