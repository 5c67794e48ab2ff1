"""What a preflight says: a line of figures for each node, and one for each thing that is not fine."""

from pipeline.commands.preflight.job import Job, Node
from pipeline.commands.preflight.node import Verdict
from pipeline.errors import CRASH, DONE

_ENDS = {DONE: "ready", CRASH: "broken", 2: "you must change something"}


def told(job: Job, processes: int, status: int) -> str:
    """The report.

    Args:
        job: What is known.
        processes: Of each node.
        status: The exit status that follows.
    """
    lines, troubles = [], []
    for number, node in enumerate(job.nodes):
        lines.append(f"  {_name(number, node)}  {_figures(node)}")
        for one in node.findings:
            if one.verdict is not Verdict.FINE:
                advice = f": {one.advice}" if one.advice else ""
                troubles.append(f"{one.verdict}: {_name(number, node)}: {one.about}: {one.found}{advice}")
    speed, size = job.reduced
    if speed:
        lines.append(f"  all-reduce of {_size(size)}: {speed / 1e6:.0f} MB/s")
    nodes = f"{len(job.nodes)} node{'s' if len(job.nodes) > 1 else ''} x {processes}"
    head = f"preflight of {nodes} process{'es' if processes > 1 else ''}: {_ENDS[status]}"
    return "\n".join([head, *lines, *troubles])


def _name(number: int, node: Node) -> str:
    return f"node {number} ({node.host})"


def _figures(node: Node) -> str:
    figures = [f"{one.about}: {one.found}" for one in node.findings if one.verdict is Verdict.FINE]
    if node.link:
        figures.append(f"best link: {node.link / 1e6:.0f} MB/s")
    return "; ".join(figures)


def _size(size: int) -> str:
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} KB"
