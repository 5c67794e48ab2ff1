"""The agents of a job look at their nodes before they train, and say which one is not fit."""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.commands.preflight.network import CheckedNode, format_report
from pipeline.commands.preflight.node import CheckStatus, NodeFinding
from tests.support.agent_harness import Nodes

Start = Callable[..., Nodes]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Start]:
    """Make a job whose agents are asked for a preflight; all that is left of it is killed at the end."""
    jobs: list[Nodes] = []

    def make(nodes: str, arguments: str = "", *options: str) -> Nodes:
        asked = f"--run_dir {tmp_path / 'run'} --gpus 0 {arguments}"
        jobs.append(Nodes(tmp_path, nodes, f"--preflight={asked}", "--monitor-interval=0.05", *options))
        return jobs[-1]

    yield make
    for each in jobs:
        for agent in each.agents.values():
            agent.kill()
            agent.wait()


def said(nodes: Nodes) -> str:
    return "".join((nodes.folder / f"out-{name}").read_text() for name in nodes.agents)


def process_of(agent: subprocess.Popen[bytes]) -> int | None:
    """The process of an agent's preflight, once it has begun to run Python."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    return next(
        (int(one) for one in children if b"\0pipeline\0preflight\0" in Path(f"/proc/{one}/cmdline").read_bytes()),
        None,
    )


def talks(process: int | None) -> bool:
    """Whether a preflight has come to the network: Gloo's threads are there."""
    tasks = Path(f"/proc/{process}/task").iterdir() if process else ()
    return any((task / "comm").read_text().startswith("gloo") for task in tasks)


@pytest.mark.timeout(120)
def test_nodes_that_are_fit_train_and_only_a_new_one_is_looked_at_again(job: Start) -> None:
    nodes = job("2", "", "--max-restarts=2")
    nodes.begin("a", "b")
    assert said(nodes).count("preflight of 2 nodes x 1 process: ready") == 1
    assert "best link: " in said(nodes)
    assert [one[3] for one in nodes.started()] == ["0", "0"], "it costs no restart"
    nodes.tell("b", 7)
    nodes.wait_started(4)
    assert said(nodes).count("preflight of") == 1, "the nodes are the same ones"
    nodes.agents["b"].kill()
    nodes.agents["b"].wait()
    nodes.start("b")
    nodes.wait_started(6, seconds=40)
    assert said(nodes).count("preflight of 2 nodes x 1 process: ready") == 2
    nodes.finish()
    assert nodes.statuses("a", "b") == [0, 0]


@pytest.mark.timeout(60)
def test_what_the_user_must_change_ends_all_with_2_before_a_worker_has_started(job: Start) -> None:
    nodes = job("2", "--shm 99999999", "--max-restarts=3")
    nodes.start("a", "b")
    assert nodes.statuses("a", "b", seconds=40) == [2, 2]
    assert "preflight of 2 nodes x 1 process: action required" in said(nodes)
    assert said(nodes).count("99999999 MB are required: request more by --shm") == 2, "of each node"
    assert nodes.started() == []
    assert "Traceback" not in nodes.err()


@pytest.mark.timeout(60)
def test_arguments_that_cannot_be_are_said_once_with_2(job: Start) -> None:
    nodes = job("2", "--disk none")
    nodes.start("a", "b")
    assert nodes.statuses("a", "b", seconds=40) == [2, 2]
    assert nodes.started() == []
    assert nodes.err().count("error: ") == 1
    assert "argument --disk: " in nodes.err()


@pytest.mark.timeout(90)
@pytest.mark.parametrize(("name", "number"), [pytest.param("a", 0, marks=pytest.mark.slow), ("b", 1)])
def test_a_node_that_hangs_is_named(job: Start, name: str, number: int) -> None:
    nodes = job("2", "--seconds 3", "--max-restarts=0", "--shutdown-timeout=2")
    nodes.start("a", "b")
    nodes.wait(lambda: process_of(nodes.agents[name]) is not None)
    os.kill(process_of(nodes.agents[name]) or 0, signal.SIGSTOP)
    assert nodes.statuses("a", "b", seconds=60) == [1, 1]
    assert "preflight of 2 nodes x 1 process: failed" in said(nodes)
    assert f"failed: node {number} (" in said(nodes)
    # It may have reported just before it was stopped.
    words = r"node: (has not reported|process 0 hangs at [a-z-]+): look at it, or remove it"
    assert re.search(words, said(nodes)), said(nodes)
    assert nodes.started() == []


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_node_0_is_named_also_where_it_hangs_in_the_network(job: Start) -> None:
    nodes = job("2", "--seconds 3", "--max-restarts=0", "--shutdown-timeout=2")
    nodes.start("a", "b")
    nodes.wait(lambda: talks(process_of(nodes.agents["a"])))
    os.kill(process_of(nodes.agents["a"]) or 0, signal.SIGSTOP)
    assert nodes.statuses("a", "b", seconds=60) == [1, 1]
    assert re.search(r"failed: node 0 \(\S+\): node: process 0 hangs at (connecting|all-reduce|links)", said(nodes))
    assert nodes.started() == []


@pytest.mark.timeout(60)
def test_a_quote_that_is_not_closed_is_said_and_what_follows_the_program_is_its_own(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, "1", "--preflight=--run_dir 'x")
    nodes.start("a")
    assert nodes.statuses("a") == [2]
    assert 'preflight="--run_dir \'x": No closing quotation' in nodes.err()
    assert "Traceback" not in nodes.err()
    nodes = Nodes(tmp_path, "1")
    (tmp_path / "worker").write_text("import sys; print(sys.argv[1:])")  # a name that does not tell that it is a script
    nodes.program = (str(tmp_path / "worker"), "--preflight", "mine")
    nodes.start("a")
    assert nodes.statuses("a") == [0]
    assert "['--preflight', 'mine']" in said(nodes)


@pytest.mark.timeout(60)
def test_asked_to_end_meanwhile_the_nodes_end_with_75(job: Start) -> None:
    nodes = job("2")
    nodes.start("a", "b")
    nodes.wait(lambda: process_of(nodes.agents["b"]) is not None)
    nodes.send("a")
    nodes.send("b")
    assert nodes.statuses("a", "b") == [75, 75]
    assert nodes.started() == []


SLOW = """
import os, sys, time
import torch.distributed as dist
from pipeline.commands.preflight.network import preflight
from pipeline.commands.preflight.node import NodeRequirements
from pipeline.process.topology import Topology
send = dist.send
def slowly(tensor, other):
    time.sleep(tensor.numel() / 20e6)  # as over a link of 20 MB/s
    send(tensor, other)
if os.environ["NODE"] == "b":
    dist.send = slowly
text, status = preflight(NodeRequirements(gpus=0), sys.argv[1] + "/run", 20.0, Topology.from_environment())
print(text)
if text:
    print("slow is rank", os.environ.get("GROUP_RANK"))
print(os.environ["NODE"], "is node", os.environ["GROUP_RANK"], flush=True)
sys.exit(status)
"""


@pytest.mark.timeout(90)
def test_of_three_nodes_the_slow_one_is_named(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, "3", "--monitor-interval=0.05")
    (tmp_path / "worker.py").write_text(SLOW)
    try:
        nodes.start("a", "b", "c", PYTHONPATH=os.getcwd())
        assert nodes.statuses("a", "b", "c", seconds=60) == [0, 0, 0], "it is told, and no more"
    finally:
        for agent in nodes.agents.values():
            agent.kill()
            agent.wait()
    text = said(nodes)
    slow = text.partition("b is node ")[2][0]
    (line,) = [line for line in text.splitlines() if line.startswith("warning")]
    assert line.startswith(f"warning: node {slow} ("), text
    assert re.search(r"best link \d+ MB/s, median \d+ MB/s", line)


def test_the_report_has_a_line_for_each_node_and_for_each_trouble() -> None:
    nodes = [
        CheckedNode("a", [NodeFinding("memory", "8.0 GB free"), NodeFinding("devices", "CPU")], link=2e9),
        CheckedNode("b", [NodeFinding("clock", "7 s behind", CheckStatus.WARNING, "set it")], link=1.5e9),
    ]
    assert format_report(nodes, 2, 0, 1e9).splitlines() == [
        "preflight of 2 nodes x 2 processes: ready",
        "  node 0 (a)  memory: 8.0 GB free; devices: CPU; best link: 2000 MB/s",
        "  node 1 (b)  best link: 1500 MB/s",
        "  all-reduce of 32 MB: 1000 MB/s",
        "warning: node 1 (b): clock: 7 s behind: set it",
    ]
