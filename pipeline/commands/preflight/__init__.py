"""Look at the nodes of a job before it is trained on them: `python -m pipeline preflight`, or by the agent.

node.py looks at one node, job.py at all of them together, report.py says it.
"""

import torch

from pipeline.commands.preflight.job import Job, Together, alone, out_of_reach
from pipeline.commands.preflight.node import Finding, Needs, Verdict, findings
from pipeline.commands.preflight.report import told
from pipeline.errors import CRASH, DONE, USER_MUST_CHANGE
from pipeline.process.topology import Topology

__all__ = ["Finding", "Needs", "Verdict", "preflight"]


def preflight(needs: Needs, run_dir: str, seconds: float, topology: Topology) -> tuple[str, int]:
    """Look at this node, and with the others at the job.

    Args:
        needs: What each node has to have.
        run_dir: The run directory, whose storage is tried.
        seconds: How long a node may take to come, and each part of the look at the network.
        topology: Where the launcher put this process.

    Returns:
        What is to be said, which is empty on all ranks but one; and the exit status: 0, 2 where the user must change
        something, 1 where a node is broken.
    """

    def look() -> list[Finding]:
        # Below what a node has for coming: so it says itself that it waits for its storage.
        return findings(needs, run_dir, topology.processes, seconds / 2)

    if topology.world_size == 1:
        job: Job | None = alone(look())
    else:
        gpus = needs.gpus != 0 and torch.cuda.device_count() >= topology.processes
        job = out_of_reach(topology, seconds / 2) or Together(topology, seconds).look(look, gpus)
    if job is None:
        return "", DONE
    verdicts = {one.verdict for node in job.nodes for one in node.findings}
    status = USER_MUST_CHANGE if Verdict.MUST_CHANGE in verdicts else CRASH if Verdict.BROKEN in verdicts else DONE
    return told(job, topology.processes, status), status
