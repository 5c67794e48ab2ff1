"""The agents of several nodes: they meet, restart, leave, join, replace each other and end together."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.agent_harness import Nodes, listens

pytestmark = pytest.mark.timeout(60)
Start = Callable[..., Nodes]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Start]:
    jobs = []

    def start(nodes: str, *options: str, join: int = 20, last_call: int | None = 1) -> Nodes:
        jobs.append(Nodes(tmp_path, nodes, *options, join=join, last_call=last_call))
        return jobs[-1]

    yield start
    for made in jobs:
        made.end()


@pytest.mark.parametrize("later", ["a", "b"])
def test_a_job_that_ends_well_says_nothing_whoever_ends_first(job: Start, later: str) -> None:
    nodes = job("2")
    for name in ("a", "b"):
        nodes.start(name, LATER="1.5" if name == later else "0")
    nodes.wait_started(2)
    nodes.finish()
    assert nodes.statuses("a", "b") == [0, 0]
    assert (nodes.said("a"), nodes.said("b")) == ("", "")


def test_a_crash_on_one_node_restarts_both_until_the_budget_is_spent(job: Start) -> None:
    nodes = job("2", "--max-restarts=1")
    nodes.begin("a", "b")
    nodes.tell("b", "kill")
    began = time.monotonic()
    started = nodes.wait_started(4)
    assert time.monotonic() - began < 8
    assert {line[2] for line in started} == {"2"}
    assert [line[3] for line in started] == ["0", "0", "1", "1"]
    assert len({line[4] for line in started}) == 2, "each round has a store of its own"
    rank = next(line[1] for line in started[:2] if line[0] == "b")
    for name in ("a", "b"):
        assert nodes.said(name) == f"rank {rank} on 127.0.0.2 killed by SIGKILL: restart 1 of 1\n"
    nodes.tell("a", 7)
    assert nodes.statuses("a", "b") == [7, 7]
    rank = next(line[1] for line in started[2:] if line[0] == "a")
    for name in ("a", "b"):
        assert nodes.said(name).splitlines()[1:] == [f"rank {rank} on 127.0.0.1 exited with status 7"]


def test_a_users_mistake_on_one_node_ends_all_with_2_and_adds_nothing(job: Start) -> None:
    nodes = job("2", "--max-restarts=3")
    nodes.begin("a", "b")
    nodes.tell("b", 2)
    assert nodes.statuses("a", "b") == [2, 2]
    assert len(nodes.started()) == 2
    assert (nodes.said("a"), nodes.said("b")) == ("", "")


def test_a_node_that_leaves_is_waited_for_and_costs_no_restart(job: Start) -> None:
    nodes = job("2")
    nodes.begin("a", "b")
    nodes.send("b", signal.SIGUSR1)
    assert nodes.statuses("b") == [75]
    nodes.start("b")
    started = nodes.wait_started(4)
    assert [line[3] for line in started] == ["0"] * 4
    nodes.finish()
    assert nodes.statuses("a", "b") == [0, 0]
    assert nodes.said("a") == "node 127.0.0.2 received SIGUSR1: re-running rendezvous\n"


def test_where_no_replacement_comes_the_others_end_with_75(job: Start) -> None:
    nodes = job("2", join=4)
    nodes.begin("a", "b")
    nodes.send("b")
    assert nodes.statuses("a", "b") == [75, 75]
    assert "rendezvous timed out after 4 s: fewer than 2 nodes joined" in nodes.said("a")


def test_workers_that_were_signalled_themselves_end_all_with_75(job: Start) -> None:
    nodes = job("2", "--max-restarts=3")
    nodes.begin("a", "b")
    (nodes.folder / f"asked-{nodes.started()[0][4]}").touch()
    assert nodes.statuses("a", "b") == [75, 75]
    assert len(nodes.started()) == 2


def test_all_nodes_signalled_end_with_75(job: Start) -> None:
    nodes = job("2", "--max-restarts=3")
    nodes.begin("a", "b")
    nodes.send("a")
    nodes.send("b")
    assert nodes.statuses("a", "b", seconds=10) == [75, 75]


def test_a_node_that_is_killed_is_replaced_at_the_cost_of_one_restart(job: Start) -> None:
    nodes = job("2", "--max-restarts=1")
    nodes.begin("a", "b")
    nodes.send("b", signal.SIGKILL)
    nodes.start("b")
    started = nodes.wait_started(4)
    assert [line[3] for line in started] == ["0", "0", "1", "1"], "the new node knows the job's budget"
    nodes.finish()
    assert nodes.statuses("a", "b") == [0, 0]
    assert nodes.said("a") == "node 127.0.0.2 lost (no heartbeats): restart 1 of 1\n"


def test_where_one_is_enough_the_others_go_on_and_a_later_one_is_taken_in(job: Start) -> None:
    nodes = job("1:2", "--max-restarts=1")
    nodes.begin("a", "b")
    # The first may have begun alone.
    nodes.wait(lambda: len([line for line in nodes.started() if line[2] == "2"]) == 2)
    before = len(nodes.started())
    nodes.send("b", signal.SIGKILL)
    started = nodes.wait_started(before + 1)
    assert started[before][0:4] == ["a", "0", "1", "1"]
    nodes.start("b")
    started = nodes.wait_started(before + 3)
    assert {tuple(line[2:4]) for line in started[before + 1 :]} == {("2", "1")}
    nodes.finish()
    assert nodes.statuses("a", "b") == [0, 0]
    assert nodes.said("a").splitlines()[-2:] == [
        "node 127.0.0.2 lost (no heartbeats): restart 1 of 1",
        "a node joins: re-running rendezvous",
    ]


def test_the_node_that_hosts_the_store_is_replaced_too(job: Start) -> None:
    nodes = job("2", "--max-restarts=1")
    nodes.begin("a", "b")
    nodes.send("a", signal.SIGKILL)
    nodes.start("a")
    started = nodes.wait_started(4)
    assert [line[3] for line in started[2:] if line[0] == "b"] == ["1"]
    nodes.finish()
    assert nodes.statuses("a", "b") == [0, 0]
    assert nodes.said("b") == "node 0 (rendezvous store) lost: restart 1 of 1\n"


@pytest.mark.parametrize("killed", ["a", "b"], ids=["the store's host", "another one"])
def test_an_agent_that_is_killed_and_not_replaced_is_a_crash_whatever_it_hosted(job: Start, killed: str) -> None:
    nodes = job("2", "--max-restarts=1", join=4)
    nodes.begin("a", "b")
    nodes.send(killed, signal.SIGKILL)
    left = {"a", "b"} - {killed}
    assert nodes.statuses(*left) == [1]


def test_a_node_that_is_done_ends_with_0_also_where_the_stores_host_is_lost(job: Start) -> None:
    nodes = job("2", "--max-restarts=0")
    nodes.begin("a", "b")
    nodes.tell("b", 0)
    time.sleep(1)
    nodes.send("a", signal.SIGKILL)
    assert nodes.statuses("b") == [0]


def test_a_node_that_is_done_goes_along_when_another_one_restarts(job: Start) -> None:
    nodes = job("2", "--max-restarts=1")
    nodes.begin("a", "b")
    nodes.tell("a", 0)
    time.sleep(1)
    nodes.tell("b", "kill")
    started = nodes.wait_started(4)
    assert [line[3] for line in started] == ["0", "0", "1", "1"]
    nodes.finish()
    assert nodes.statuses("a", "b") == [0, 0]


def test_a_signal_in_the_rendezvous_is_obeyed_at_once(job: Start) -> None:
    nodes = job("2")
    nodes.start("a")
    nodes.wait(lambda: listens(nodes.port))
    time.sleep(1)
    nodes.send("a")
    assert nodes.statuses("a", seconds=4) == [75]
    assert nodes.said("a") == "node 127.0.0.1 received SIGTERM before its workers were started\n"


def test_a_worker_that_leaves_before_its_first_step_ends_those_of_the_other_node_within_seconds(job: Start) -> None:
    nodes = job("2", "--max-restarts=3", "--shutdown-timeout=60")
    nodes.begin("a", "b", STARTING="1")
    began = time.monotonic()
    nodes.tell("b", "unsaved")
    assert nodes.statuses("a", "b", seconds=10) == [75, 75]
    assert time.monotonic() - began < 6
    assert (nodes.folder / "left-alone-a").exists(), "it was asked"
    assert len(nodes.started()) == 2


def test_a_node_that_leaves_before_the_first_step_ends_the_workers_of_the_other_within_seconds(job: Start) -> None:
    nodes = job("2", "--max-restarts=3", "--shutdown-timeout=60", join=6)
    nodes.begin("a", "b", STARTING="1")
    nodes.send("b")
    assert nodes.statuses("b", seconds=6) == [75]
    nodes.wait((nodes.folder / "left-alone-a").exists, seconds=6)
    assert nodes.statuses("a") == [75], "no replacement has come"


def test_nodes_that_join_one_after_the_other_cost_one_restart(job: Start) -> None:
    nodes = job("1:5", "--max-restarts=1", last_call=3)
    nodes.begin("a")
    nodes.start("b")
    time.sleep(1.5)
    nodes.start("c")
    started = nodes.wait_started(4)
    assert [line[2] for line in started] == ["1", "3", "3", "3"]
    nodes.finish()
    assert nodes.statuses("a", "b", "c") == [0, 0, 0]
    assert nodes.said("a") == "a node joins: re-running rendezvous\n"


def test_a_range_of_nodes_with_a_short_join_timeout_starts_with_those_that_are_there(job: Start) -> None:
    nodes = job("1:2", join=8, last_call=None)
    nodes.start("a")
    assert nodes.wait_started(1)[0][2] == "1"
    nodes.finish()
    assert nodes.statuses("a") == [0]
