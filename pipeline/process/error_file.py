"""Why a process failed, written down for whoever started it, so that a job says it once.

torch's agent names a file to each worker, and TorchX one to each agent: TORCHELASTIC_ERROR_FILE. What is written there
has the form of `torch.distributed.elastic.multiprocessing.errors`, with two fields more: the exit status, and whether
the failure is only that a peer was lost, which is an echo of the peer's own.

The standard library alone: this must be there before torch is imported.
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

from pipeline.errors import CRASH, DONE, chain

FILE = "TORCHELASTIC_ERROR_FILE"
"""The environment variable that names the file."""

_UNDER_AN_AGENT = "TORCHELASTIC_RUN_ID"
_GONE = ("DistStoreError", "DistNetworkError")
"""torch's errors that only a lost peer, or a lost host of the store, raises."""
_ECHO = re.compile(
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
class Report:
    """What a process has written down about its end.

    Attributes:
        message: One line: the exception's type and text.
        traceback: As Python prints it; empty where nothing was raised.
        lost_peer: Whether it failed only because another process had.
        status: The exit status that it meant, None where the file does not say.
        time: Seconds since 1970.
    """

    message: str
    traceback: str
    lost_peer: bool
    status: int | None
    time: float


def guarded(main: Callable[[], int], environment: Mapping[str, str] = os.environ) -> int:
    """Run a program, and write down how it failed where somebody has named a file for that.

    Under an agent, which prints it once for the whole job, nothing is printed here and the process ends at once with
    status 1: a torch whose peers are gone may abort while Python takes it down.

    Returns:
        The program's own exit status.

    Raises:
        Exception: What the program raised, where no agent would say it.
    """
    path, under_an_agent = environment.get(FILE), _UNDER_AN_AGENT in environment
    try:
        status = main()
    except Exception as error:
        if path:
            write(path, CRASH, summary(error), traceback.format_exc(), lost_peer=is_lost_peer(error))
            if under_an_agent:
                leave(CRASH)
        raise
    except SystemExit as ended:
        if path and not under_an_agent and ended.code:
            write(path, ended.code if isinstance(ended.code, int) else CRASH, f"ended with status {ended.code}")
        raise
    if path and not under_an_agent and status != DONE:
        write(path, status, f"ended with status {status}")
    return status


def leave(status: int) -> NoReturn:
    """End this process now: what is registered for the end is done, and no thread is waited for."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def summary(error: BaseException) -> str:
    """An exception in one line, as the last one of its traceback."""
    return " ".join("".join(traceback.format_exception_only(error)).split())


def write(path: str, status: int, message: str, stack: str = "", *, lost_peer: bool = False) -> None:
    """Write down how this process ends. A file that cannot be written is let be: the status says the most of it."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content(status, message, stack, lost_peer=lost_peer), file)
    except OSError:
        pass


def content(status: int, message: str, stack: str = "", *, lost_peer: bool = False) -> dict[str, Any]:
    """A report as JSON, in torch's form."""
    now = time.time()
    extra = {"py_callstack": stack, "timestamp": str(int(now)), "time": now, "lost_peer": lost_peer}
    return {"message": {"message": message, "errorCode": status, "extraInfo": extra}}


def read(path: str) -> Report | None:
    """What a process has written down; None where it has written nothing that can be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return parse(json.load(file))
    except (OSError, ValueError):
        return None


def parse(content: Any) -> Report | None:
    """A report from its JSON, which may be torch's own and have none of our fields; None for anything else."""
    message = content.get("message") if isinstance(content, dict) else None
    if isinstance(message, str):
        message = {"message": message, "extraInfo": content}
    if not isinstance(message, dict):
        return None
    extra = message.get("extraInfo")
    extra = extra if isinstance(extra, dict) else {}
    text = str(message.get("message", ""))
    status = message.get("errorCode")
    return Report(
        message=text.partition("\n")[0],
        traceback=str(extra.get("py_callstack", "")),
        lost_peer=bool(extra.get("lost_peer", is_echo(text))),
        status=status if isinstance(status, int) else None,
        time=float(extra.get("time", extra.get("timestamp", 0)) or 0),
    )


def is_lost_peer(error: BaseException) -> bool:
    """Whether an exception only says that another process is gone or does not answer.

    Of a chain of exceptions the first one decides: what fails later may fail for it.
    """
    first = chain(error)[-1]
    if any(kind.__name__ in _GONE and kind.__module__.startswith("torch") for kind in type(first).__mro__):
        return True
    return isinstance(first, RuntimeError) and is_echo(str(first))


def is_echo(text: str) -> bool:
    """Whether the text of an error of gloo, NCCL or the store says that a peer is gone."""
    return bool(_COLLECTIVE.search(text) and _ECHO.search(text))
