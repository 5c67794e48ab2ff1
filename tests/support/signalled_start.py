"""A fit that sends itself SIGTERM when a method is called, or a storm of signals from there on.

python -m tests.support.statements "from tests.support.signalled_start import main; main()" <method> once|storm fit ...
"""

import importlib
import os
import signal
import sys
import threading
import time
from itertools import cycle
from typing import Any

from pipeline.__main__ import run
from pipeline.process.error_file import guarded
from pipeline.process.held_signals import hold_signals

STORM = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _signal_at(path: str, kind: str) -> None:
    where, name = path.rsplit(".", 1)
    owner: Any = sys.modules.get(where)
    if owner is None:
        module, kind_name = where.rsplit(".", 1)
        owner = getattr(importlib.import_module(module), kind_name)
    real = getattr(owner, name)

    def signalled(*arguments: Any, **named: Any) -> Any:
        setattr(owner, name, real)
        os.kill(os.getpid(), signal.SIGTERM)
        if kind == "storm":
            threading.Thread(target=_storm, daemon=True).start()
        return real(*arguments, **named)

    setattr(owner, name, signalled)


def _storm() -> None:
    for number in cycle(STORM):
        time.sleep(0.01)
        os.kill(os.getpid(), number)


def main() -> None:
    """Run as `python -m pipeline` does."""
    path, kind = sys.argv[2:4]
    sys.argv = ["pipeline", *sys.argv[4:]]
    hold_signals()
    _signal_at(path, kind)
    sys.exit(guarded(run))
