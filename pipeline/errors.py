"""The exit statuses of a container, and the error that means "you must change something"."""

from collections.abc import Iterable
from difflib import get_close_matches

DONE = 0
CRASH = 1
USER_MUST_CHANGE = 2
PREEMPTED = 75
INTERRUPTED = 130
"""As a shell says it of what SIGINT has ended."""


class UserError(Exception):
    """A mistake that only the user can mend: printed without a traceback, exit status 2, never retried.

    Args:
        problems: One sentence per mistake: the name, the value found, what is allowed, how to mend it. All of them at
            once, so that nobody mends them one start at a time.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class NothingToDo(Exception):
    """Neither a model nor a device is needed: what was asked for has been said, or was done before.

    Args:
        status: The exit status.
    """

    def __init__(self, status: int = DONE) -> None:
        super().__init__()
        self.status = status


class Preempted(Exception):
    """This process was asked to end, and has done so: what it had reached is durable, as far as the text says.

    Attributes:
        status: The exit status.
    """

    status = PREEMPTED


class StorageAway(Exception):
    """The storage does not answer, and has not for some time: nothing that the user must change, as far as is known."""


class LeaseLost(Exception):
    """Another writer has had this run since: nothing more is to be committed."""


class ProofFailed(Exception):
    """Samples were not used as they should have been: the numbers that came out are worth nothing."""


def chain(error: BaseException) -> list[BaseException]:
    """An exception, and what it came of, the first one last; each once, for some chains end in themselves."""
    found = [error]
    while (below := found[-1].__cause__ or found[-1].__context__) is not None and below not in found:
        found.append(below)
    return found


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the allowed name closest to a misspelt one, or nothing."""
    close = get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
