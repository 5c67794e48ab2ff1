"""A request to stop that comes before there is a handler is kept, and obeyed once there is one."""

import sys

from tests.support.commands import command

PROGRAM = """
import os, signal
from pipeline.process.held_signals import STOP_SIGNALS, hold_signals, take_held_signals

heard = []
hold_signals()
for number in STOP_SIGNALS:
    os.kill(os.getpid(), number)
for number in STOP_SIGNALS:
    signal.signal(number, lambda number, _: heard.append(number))
assert heard == []
take_held_signals()
assert sorted(heard) == sorted(STOP_SIGNALS), heard
"""


def test_what_comes_before_there_is_a_handler_is_kept_for_it() -> None:
    ended = command(sys.executable, "-c", PROGRAM)
    assert ended.status == 0, ended.text
