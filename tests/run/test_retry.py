"""A start retries what is away, for as long as its patience lasts."""

import logging
import time
from collections.abc import Callable

import pytest

from pipeline.errors import Preempted, StorageAway
from pipeline.process.patience import Patience, patience
from pipeline.run import retry
from pipeline.run.retry import patiently


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_PAUSE", 0.001)


def failing(times: int, error: Exception) -> Callable[[], int]:
    """A call that fails so often, and then returns how often it was made."""
    calls: list[int] = []

    def call() -> int:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return len(calls)

    return call


def test_an_outage_that_passes_is_waited_for_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), patience(Patience(60)):
        assert patiently("s3://b/x", failing(3, ConnectionResetError("reset"))) == 4
    assert (
        "s3://b/x does not answer, retrying for another 60 s (--away_limit): ConnectionResetError: reset" in caplog.text
    )
    assert caplog.text.count("does not answer") == 1
    assert "s3://b/x answers again after 0 s" in caplog.text


def test_a_line_comes_again_after_a_while(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_BETWEEN_LINES", 0.0)
    with patience(Patience(60)):
        patiently("s3://b/x", failing(3, ConnectionResetError()))
    assert caplog.text.count("does not answer") == 3


def test_a_request_that_hangs_in_its_client_is_named_again_and_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_BETWEEN_LINES", 0.02)
    words = "still waiting for s3://b/x after 0 s"

    def hangs() -> str:
        while caplog.text.count(words) < 3:
            time.sleep(0.01)
        return "an answer"

    with patience(Patience(60)):
        assert patiently("s3://b/x", hangs) == "an answer"
    lines = caplog.text.count(words)
    time.sleep(0.1)
    assert caplog.text.count(words) <= lines + 1, "no more once it has answered"


def test_one_that_does_not_pass_is_a_storage_that_is_away_and_not_waited_for_again() -> None:
    calls = failing(10**9, TimeoutError("silence"))
    with patience(Patience(0.05)), pytest.raises(StorageAway, match=r"s3://b/x has not answered for 0.05 s .*silence"):
        patiently("the outer one", lambda: patiently("s3://b/x", calls))


def test_a_refusal_and_an_outage_without_patience_pass_at_once() -> None:
    with patience(Patience(60)), pytest.raises(PermissionError):
        patiently("x", failing(1, PermissionError()))
    with pytest.raises(ConnectionResetError):
        patiently("x", failing(1, ConnectionResetError()))


def test_what_a_failed_call_has_done_is_undone_before_the_next() -> None:
    done: list[str] = []
    with patience(Patience(60)):
        patiently("x", failing(2, ConnectionResetError()), lambda: done.append("undone"))
    assert done == ["undone"] * 2


def test_a_request_to_stop_ends_the_wait() -> None:
    def check() -> None:
        raise Preempted("now")

    with patience(Patience(60, check)), pytest.raises(Preempted):
        patiently("x", failing(10**9, ConnectionResetError()))
