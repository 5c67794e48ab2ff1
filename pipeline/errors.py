"""Exceptions with a meaning of their own, and the one table of what each does to the exit status of a container."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

DONE = 0
CRASH = 1
USER_MUST_CHANGE = 2
PREEMPTED = 75
INTERRUPTED = 130
"""What a shell returns for a program that SIGINT ended."""

NO_FAILURE = (DONE, USER_MUST_CHANGE, PREEMPTED, INTERRUPTED)
"""The exit statuses that say nothing about the machines: a restart either is not needed or would not help."""


class UserError(Exception):
    """A mistake that only the user can fix: printed without a traceback, never retried.

    Args:
        problems: One sentence per mistake: the name, the value found, what is allowed, how to fix it. All of them at
            once, so that the user does not need one start for each.
    """

    def __init__(self, *problems: str) -> None:
        problems = tuple(line for problem in problems for line in _said(problem))
        super().__init__("\n".join(problems))
        self.problems = problems


def _said(problem: str) -> list[str]:
    """Return the problems in a text. torch hands an exception of a loader worker on as the text of its traceback."""
    if not problem.startswith("Caught UserError in "):
        return [problem]
    return problem.rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2].strip().splitlines()


class Preempted(Exception):
    """This process was asked to stop and has done so; the text says which step is durable."""


class StorageAway(Exception):
    """The storage has not answered for some time. As far as is known there is nothing that the user must change."""

    def __init__(self, problem: str = "") -> None:
        # As above, of a loader worker.
        super().__init__(problem.rpartition(f"{StorageAway.__module__}.{StorageAway.__name__}: ")[2].strip())


class LeaseLost(Exception):
    """Another writer has taken over this run: nothing more may be committed."""


class ProofFailed(Exception):
    """Samples were not used as they should have been: the resulting numbers are worthless."""


@dataclass(frozen=True)
class Outcome:
    """How a process ends.

    Attributes:
        status: Its exit status.
        reason: Why, in words.
        expected: Whether the reason explains it, so that a traceback would not help anybody.
    """

    status: int
    reason: str
    expected: bool = True


_OUTCOMES: tuple[tuple[type[BaseException], int, str], ...] = (
    (UserError, USER_MUST_CHANGE, "user must change: {}"),
    # Another start would use the same samples: the dataset or its loader must be fixed.
    (ProofFailed, USER_MUST_CHANGE, "proof failed: {}"),
    (LeaseLost, CRASH, "lease lost: {}"),
    (StorageAway, CRASH, "storage away: {}"),
    (Preempted, PREEMPTED, "{}"),
    (KeyboardInterrupt, INTERRUPTED, "interrupted by a person"),
)
"""Exception, exit status, reason."""


def outcome(error: BaseException | None) -> Outcome:
    """Return what an exception means for the process that it ends; None stands for a process that is done."""
    if error is None:
        return Outcome(DONE, "done")
    for kind, status, reason in _OUTCOMES:
        if isinstance(error, kind):
            return Outcome(status, reason.format(error))
    if isinstance(error, SystemExit):
        return Outcome(error.code if isinstance(error.code, int) else CRASH, "interrupted")
    return Outcome(CRASH, f"crash: {in_one_line(error)}", expected=False)


def in_one_line(error: BaseException) -> str:
    """Return an exception's type and text in one line; some say little by their text alone."""
    said, _, _ = str(error).partition("Debug source:")  # obstore says everything twice
    text = " ".join([*said.split(), *(f"({note})" for note in getattr(error, "__notes__", ()))])
    if isinstance(error, (UserError, StorageAway)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def chain(error: BaseException) -> list[BaseException]:
    """Return an exception and those that caused it, the original one last; each once, for some chains are circular."""
    found = [error]
    while (below := found[-1].__cause__ or found[-1].__context__) is not None and below not in found:
        found.append(below)
    return found


def install_command(extra: str) -> str:
    """Return the command that installs an extra of this package."""
    return f"pip install 'torchx-lightning-pipeline[{extra}]'"


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the allowed name closest to a misspelt one, or an empty string."""
    close = get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
