"""What the user's own code raises is one sentence with its place; an outage is no mistake."""

import pytest

from pipeline.commands.inspection.failures import described, user_code
from pipeline.errors import StorageAway, UserError
from tests.support.inspected import Torn


def raised() -> BaseException:
    try:
        Torn(at=3)[3]
    except ValueError as error:
        return error
    raise AssertionError


def test_an_error_says_what_and_where() -> None:
    assert described(raised()).startswith("ValueError: the row is torn")


def test_what_fails_is_named() -> None:
    with pytest.raises(UserError, match="the data: ValueError: the row is torn"), user_code("the data"):
        raise raised()


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), TimeoutError("slow"), StorageAway("away")])
def test_a_storage_that_does_not_answer_is_no_mistake(error: Exception) -> None:
    with pytest.raises(StorageAway), user_code("the data"):
        raise error


def test_a_mistake_that_is_worded_already_stays_as_it_is() -> None:
    with pytest.raises(UserError, match=r"^n=0 must be >= 1$"), user_code("the data"):
        raise UserError("n=0 must be >= 1")
