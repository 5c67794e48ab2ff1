"""What follows from the news of a round: who failed first, when it is time to decide, and what the verdict is."""

from signal import SIGABRT, SIGKILL
from typing import Any

import pytest

from pipeline.agent.policy import Kind, Round, Says, Word, decide, failure, first_failure, patience, words_of, written
from pipeline.process.error_file import Report

A, B = "10.0.0.1_7_0", "10.0.0.2_9_0"


def known(seconds: float = 60.0, **more: Any) -> Round:
    return Round(**{"me": A, "nodes": {A, B}, "vanished": set(), "seconds": seconds, "spent": 0, "allowed": 2} | more)


def failed(node: str = A, status: int = 1, kind: Kind = Kind.FIRST_HAND) -> Word:
    return Word(node, Says.FAILED, status, rank=3, how="rank 3 failed", kind=kind)


def ended(node: str, status: int = 0) -> Word:
    return Word(node, Says.ENDED, status)


def verdict(*words: Word, **more: Any) -> tuple[int, bool, int]:
    """Status, whether the nodes meet again, and restarts spent."""
    found = decide(words, known(**more))
    assert found is not None
    assert found.says is Says.VERDICT
    return found.status, found.again, found.spent


def test_words_come_back_as_they_were_written() -> None:
    words = (failed(B, 9, Kind.LOST_PEER), Word(A, Says.VERDICT, 75, how="x\ny", again=True, spent=2))
    assert words_of("".join(map(written, words)).encode()) == words


def test_all_ended_well_is_the_end() -> None:
    assert verdict(ended(A), ended(B)) == (0, False, 0)
    assert decide([ended(A)], known()) is None, "the other one may still fail"


def test_a_crash_is_restarted_while_the_budget_lasts() -> None:
    assert verdict(failed(status=7)) == (7, True, 1)
    assert verdict(failed(status=7), spent=2) == (7, False, 2)


def test_a_users_mistake_is_never_restarted_and_comes_before_all_else() -> None:
    assert verdict(failed(A, 137), failed(B, 2), seconds=0.0) == (2, False, 0)
    assert verdict(Word(B, Says.LEAVING, how="asked"), failed(A, 2)) == (2, False, 0)


def test_who_knows_the_most_failed_first() -> None:
    echo, unknown, own = failed(A, 1, Kind.LOST_PEER), failed(A, 5, Kind.UNKNOWN), failed(B, 6)
    assert first_failure([echo, unknown, own]) is own
    assert first_failure([echo, unknown]) is unknown
    assert first_failure([ended(A)]) is None


def test_a_75_that_no_node_was_asked_for_ends_the_job() -> None:
    assert verdict(ended(A, 75), ended(B, 75)) == (75, False, 0)


def test_who_fails_of_a_peers_75_has_not_crashed() -> None:
    saved = Word(B, Says.SAVED)
    assert verdict(saved, failed(A, 1, Kind.LOST_PEER)) == (75, False, 0)
    assert verdict(saved, failed(A, 1, Kind.UNKNOWN)) == (75, False, 0)
    assert verdict(saved, failed(A, 7)) == (7, True, 1), "a crash of its own is one all the same"


@pytest.mark.parametrize("says", [Says.LEAVING, Says.JOINING])
def test_where_a_node_leaves_or_joins_the_nodes_meet_again_at_no_cost(says: Says) -> None:
    word = Word(B, says, how="a node")
    assert verdict(word, ended(A, 75)) == (75, True, 0)
    assert verdict(word, failed(A, 1, Kind.LOST_PEER), spent=2) == (75, True, 2), "its peers went with it"
    assert verdict(word, failed(A, 7)) == (7, True, 1), "a crash of its own is one all the same"


def test_a_node_that_vanished_is_the_cause_of_its_peers_failures() -> None:
    found = decide([failed(A, 1, Kind.LOST_PEER)], known(vanished={B}))
    assert found is not None
    assert (found.how, found.again, found.spent) == ("node 10.0.0.2 is gone", True, 1)


def test_better_news_are_waited_for() -> None:
    echo, own = failed(A, 1, Kind.LOST_PEER), failed(A, 1)
    assert patience([echo], known()) > patience([own], known()) > 0
    assert decide([echo], known(seconds=0.1)) is None
    assert patience([echo], known(nodes={A})) == 0, "there is nobody else"


@pytest.mark.parametrize(
    ("code", "report", "status", "kind", "how"),
    [
        (7, None, 7, Kind.UNKNOWN, "status 7"),
        (-SIGKILL, None, 137, Kind.FIRST_HAND, "SIGKILL"),
        (-64, None, 192, Kind.FIRST_HAND, "SIGRTMAX"),
        (-SIGABRT, None, 134, Kind.UNKNOWN, "SIGABRT"),
        (1, Report("ValueError: no", "T", False, 1, 0.0), 1, Kind.FIRST_HAND, "status 1 (ValueError: no)"),
        (1, Report("closed by peer", "T", True, 1, 0.0), 1, Kind.LOST_PEER, "status 1 (closed by peer)"),
        (-SIGABRT, Report("ValueError: no", "T", False, 1, 0.0), 1, Kind.FIRST_HAND, "status 1 (ValueError: no)"),
        (1, Report("x" * 500, "T", False, 1, 0.0), 1, Kind.FIRST_HAND, "x..."),
    ],
)
def test_what_a_workers_end_says(code: int, report: Report | None, status: int, kind: Kind, how: str) -> None:
    word = failure(A, "host", 3, code, report)
    assert (word.status, word.kind) == (status, kind)
    assert word.how.startswith("rank 3 on host ended with ")
    assert how in word.how
    assert len(word.how) < 300
