"""What a user's own code raises while it is looked at, in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config import mistakes
from pipeline.errors import StorageAway, UserError, in_one_line
from pipeline.run.storage_errors import describe_outage, is_away


def described(error: BaseException) -> str:
    """Return what an exception says and where in the user's code it came from.

    Raises:
        StorageAway: It means that a storage does not answer.
    """
    if isinstance(error, StorageAway):
        raise error
    if is_away(error):
        raise StorageAway(describe_outage(error)) from error
    if isinstance(error, UserError):
        return str(error)
    return (mistakes.sentence(error) or f"{in_one_line(error)}{mistakes.where(error)}").removesuffix(".")


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """Report what the user's own code raises in here.

    Args:
        what: That fails.

    Raises:
        UserError: It raised anything.
        StorageAway: A storage does not answer.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {described(error)}") from error
