"""Why a process failed, written to a file for its parent, so that a job reports it once.

torch's agent names a file for each worker, and TorchX one for each agent: TORCHELASTIC_ERROR_FILE. The content has the
form of `torch.distributed.elastic.multiprocessing.errors` with two more fields: the exit status, and whether the
process failed only because it lost a peer, which is an echo of the peer's own failure.

Uses the standard library alone: this must work before torch is imported.
"""

import atexit
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from pipeline.errors import CRASH, DONE, chain, in_one_line

FILE = "TORCHELASTIC_ERROR_FILE"
"""The environment variable that names the file."""

_UNDER_AN_AGENT = "TORCHELASTIC_RUN_ID"
_LOST_PEER_TYPES = ("DistStoreError", "DistNetworkError")
"""torch's exceptions that only a lost peer, or a lost host of the store, raises."""
_LOST_PEER_TEXT = re.compile(
    # gloo
    r"Connection closed by peer|Connection reset by peer|Broken pipe|Socket closed|Connection refused"
    r"|Timed out waiting \d+ms|failed to pass monitoredBarrier|[Cc]onnect timeout|connectFullMesh failed"
    # NCCL, and torch's watchdog over it
    r"|ncclRemoteError|remote process exited or there was a network error|Watchdog caught collective operation timeout"
    r"|NCCL communicator was aborted|NCCL timeout|ncclInProgress"
    # the store
    r"|wait timeout after \d+ms|recvValue failed|sendBytes failed|The client socket has (?:failed|timed out)"
)
_COLLECTIVE = re.compile(r"gloo|NCCL|nccl|monitoredBarrier|TCPStore|ProcessGroup|socket|wait timeout", re.IGNORECASE)


@dataclass(frozen=True)
class ErrorReport:
    """The content of an error file.

    Attributes:
        message: One line: the exception's type and text.
        traceback: As Python prints it; empty if nothing was raised.
        lost_peer: Whether the process failed only because another one had.
        status: The exit status, None if the file does not have it.
        time: Seconds since 1970.
    """

    message: str
    traceback: str
    lost_peer: bool
    status: int | None
    time: float


def guarded(main: Callable[[], int], environment: Mapping[str, str] = os.environ) -> int:
    """Run a program, and write how it failed to the error file, if one is named.

    Under an agent, which reports a failure once for the whole job, nothing is printed here and the process exits at
    once with status 1: torch may abort while Python tears it down after a lost peer.

    Returns:
        The program's own exit status.

    Raises:
        Exception: What the program raised, if no agent reports it.
    """
    path, under_an_agent = environment.get(FILE), _UNDER_AN_AGENT in environment
    try:
        status = main()
    except Exception as error:
        if path:
            write_report(path, CRASH, in_one_line(error), traceback.format_exc(), lost_peer=is_lost_peer(error))
            if under_an_agent:
                exit_now(CRASH)
        raise
    except SystemExit as end:
        if path and not under_an_agent and end.code:
            write_report(path, end.code if isinstance(end.code, int) else CRASH, f"exited with status {end.code}")
        raise
    if path and not under_an_agent and status != DONE:
        write_report(path, status, f"exited with status {status}")
    return status


def exit_now(status: int) -> NoReturn:
    """Exit without waiting for threads, after the functions that `atexit` holds.

    Those can only be run by a private function of CPython: without it they are skipped.
    """
    getattr(atexit, "_run_exitfuncs", lambda: None)()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def write_report(path: str, status: int, message: str, stack: str = "", *, lost_peer: bool = False) -> None:
    """Write an error file. A file that cannot be written is skipped: the exit status tells the most."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content(status, message, stack, lost_peer=lost_peer), file)
    except OSError:
        pass


def content(status: int, message: str, stack: str = "", *, lost_peer: bool = False) -> dict[str, Any]:
    """Return the content of an error file, in torch's form."""
    now = time.time()
    extra = {"py_callstack": stack, "timestamp": str(int(now)), "time": now, "lost_peer": lost_peer}
    return {"message": {"message": message, "errorCode": status, "extraInfo": extra}}


def read_report(path: str) -> ErrorReport | None:
    """Read an error file; None if there is none, or none that can be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return parse(json.load(file))
    except (OSError, ValueError):
        return None


def parse(content: Any) -> ErrorReport | None:
    """Parse the content of an error file, which may be torch's own without our fields; None for anything else."""
    message = content.get("message") if isinstance(content, dict) else None
    if isinstance(message, str):
        message = {"message": message, "extraInfo": content}
    if not isinstance(message, dict):
        return None
    extra = message.get("extraInfo")
    extra = extra if isinstance(extra, dict) else {}
    text = str(message.get("message", ""))
    status = message.get("errorCode")
    return ErrorReport(
        message=text.partition("\n")[0],
        traceback=str(extra.get("py_callstack", "")),
        lost_peer=bool(extra.get("lost_peer", is_lost_peer_text(text))),
        status=status if isinstance(status, int) else None,
        time=float(extra.get("time", extra.get("timestamp", 0)) or 0),
    )


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an exception only means that another process is lost or does not answer.

    Of a chain of exceptions the first one decides: later ones may be its consequences.
    """
    first = chain(error)[-1]
    if any(kind.__name__ in _LOST_PEER_TYPES and kind.__module__.startswith("torch") for kind in type(first).__mro__):
        return True
    return isinstance(first, RuntimeError) and is_lost_peer_text(str(first))


def is_lost_peer_text(text: str) -> bool:
    """Return whether a message of gloo, NCCL or the store means that a peer is lost."""
    return bool(_COLLECTIVE.search(text) and _LOST_PEER_TEXT.search(text))
