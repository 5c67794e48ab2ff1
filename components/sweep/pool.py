"""Stages that run beside each other: each is followed by a thread, as `components.launch` follows its one."""

import queue
import threading
from dataclasses import dataclass, replace

from torchx.specs import AppDef

from components.stages import LaunchTarget, run_stage
from pipeline.errors import CRASH, DONE, INTERRUPTED, USER_MUST_CHANGE, UserError, in_one_line

_ERROR = "error: "
"""Begins the lines in which this program names a mistake."""


@dataclass(frozen=True)
class EndedStage:
    """How a stage ended.

    Attributes:
        key: As it was started.
        status: Its exit status.
        how: A sentence on it.
        submitted: False where the launcher has rejected it.
        error: The last error that its log names; empty for none.
    """

    key: str
    status: int
    how: str
    submitted: bool = True
    error: str = ""


class StagePool:
    """Runs stages until `close`.

    Args:
        target: Where they run.
    """

    def __init__(self, target: LaunchTarget) -> None:
        self._target = target
        self._ended: queue.Queue[EndedStage] = queue.Queue()
        self._running: dict[str, tuple[threading.Thread, LaunchTarget]] = {}

    def start(self, key: str, app: AppDef, run_dir: str, name: str = "") -> None:
        """Start a stage.

        Args:
            key: What tells it from others; it stands before each line of its log.
            app: The stage.
            run_dir: Its run directory.
            name: By which its launcher finds it again; empty for none.
        """
        errors: list[str] = []

        def said(line: str) -> None:
            if line.startswith(_ERROR):
                errors.append(line.removeprefix(_ERROR).strip())

        target = replace(self._target, name=name, label=f"{key} | ", interrupt=threading.Event(), said=said)
        thread = threading.Thread(target=self._run, args=(key, app, target, run_dir, errors), name=key, daemon=True)
        self._running[key] = thread, target
        thread.start()

    def next(self, seconds: float) -> EndedStage | None:
        """Return a stage that has ended, waiting so long for one; None if none has."""
        try:
            ended = self._ended.get(timeout=seconds)
        except queue.Empty:
            return None
        self._running.pop(ended.key)[0].join()
        return ended

    def cancel(self, key: str) -> None:
        """Cancel a stage, which ends a while later."""
        if key in self._running:
            target = self._running[key][1]
            target.cancels = True
            target.interrupt.set()

    def close(self) -> None:
        """Do to the stages that run what an interrupt of this process does: cancel them, or leave them."""
        for _, target in self._running.values():
            target.interrupt.set()
        for thread, _ in self._running.values():
            thread.join()

    def _run(self, key: str, app: AppDef, target: LaunchTarget, run_dir: str, errors: list[str]) -> None:
        try:
            status, how = run_stage(app, target, run_dir)
            ended = EndedStage(key, status, how, error=errors[-1] if errors and status != DONE else "")
        except KeyboardInterrupt:
            ended = EndedStage(key, INTERRUPTED, "cancelled")
        except UserError as error:
            ended = EndedStage(key, USER_MUST_CHANGE, str(error), submitted=False)
        except Exception as error:  # noqa: BLE001 - one stage, whatever it is, ends none of the others
            ended = EndedStage(key, CRASH, in_one_line(error))
        self._ended.put(ended)
