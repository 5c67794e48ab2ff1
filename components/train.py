"""Training on one or several nodes.

torchx run -s local_cwd train --run_dir runs/one --nodes 2 --config pipeline/configs/digits.yaml
torchx run -s local_cwd train --run_dir runs/one -- --trainer.max_epochs=3
"""

import hashlib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Dict, List, Optional  # noqa: UP035 - what TorchX 0.7's component linter reads

from torchx import specs
from torchx.specs import macros

from components.role import IMAGE, METRICS, NodeSpec, quoted
from pipeline.agent.standby import AUTO, CHOICES
from pipeline.errors import UserError

_PORTS = range(10_000, 30_000)


def train(
    *app_args: str,
    run_dir: str,
    config: str = "pipeline/configs/digits.yaml",
    nodes: str = "1",
    processes: int = 0,
    cpu: int = 2,
    memory: int = 4096,
    gpu: int = 0,
    image: str = IMAGE,
    env: Optional[Dict[str, str]] = None,  # noqa: UP006, UP045
    mounts: Optional[List[str]] = None,  # noqa: UP006, UP045
    secrets: Optional[List[str]] = None,  # noqa: UP006, UP045
    shm: int = 0,
    retries: int = 3,
    max_restarts: int = 3,
    grace: int = 30,
    join_timeout: int = 600,
    rdzv_port: int = 0,
    preflight: bool = False,
    standby: str = "auto",
) -> specs.AppDef:
    """Train with DDP on one or more nodes; run it again with the same run_dir to resume.

    Args:
        app_args: the app's own flags, after --, such as --trainer.max_epochs=3
        run_dir: where the run lies: a path or an fsspec URL that all nodes see (s3://bucket/run)
        config: YAML file of the app, as the nodes see it
        nodes: number of nodes, or MIN:MAX to start with fewer
        processes: processes per node; 0 means one per GPU, or one without GPUs
        cpu: cores per node
        memory: MB of memory per node
        gpu: GPUs per node
        image: container image
        env: environment of the processes, as A=1,B=2
        mounts: mounts, as type=bind,src=/on/the/host,dst=/in/the/container
        secrets: variables whose values the launcher takes from its environment and never prints, as A,B
        shm: MB of /dev/shm; 0 means the launcher's default
        retries: how often the launcher restarts a container that ended with neither 0 nor 2, where it can
        max_restarts: how often the processes are restarted in place after a crash; never after a user error
        grace: seconds between SIGTERM and SIGKILL, for a step, a save and its upload
        join_timeout: seconds that the nodes wait for each other, at the start and for a node that is replaced
        rdzv_port: rendezvous port on node 0; 0 means one that follows from run_dir
        preflight: true: check all nodes, their storage and their network before training; takes some seconds
        standby: fork processes from one that has imported everything: true, false, or auto for true without GPUs
    """
    node = NodeSpec(image, cpu, memory, gpu, env, mounts, secrets, shm, retries)
    agent = AgentOptions(nodes, processes, max_restarts, grace, join_timeout, rdzv_port, preflight, standby)
    return _app(node, agent, run_dir, config, app_args)


@dataclass(frozen=True)
class AgentOptions:
    """How the agents of a training run; the attributes are parameters of `train`."""

    nodes: str
    processes: int
    max_restarts: int
    grace: int
    join_timeout: int
    rdzv_port: int
    preflight: bool
    standby: str = AUTO

    def problems(self, gpu: int) -> Iterator[str]:
        """Yield what cannot work, one sentence per mistake."""
        try:
            self.range()
        except ValueError:
            yield f"nodes={self.nodes!r} must be a number such as 2, or MIN:MAX such as 1:4"
        if 0 < gpu < self.processes:
            yield f"processes={self.processes} on gpu={gpu}: each process needs a device of its own"
        for name, least in {"processes": 0, "max_restarts": 0, "grace": 1, "join_timeout": 1}.items():
            if getattr(self, name) < least:
                yield f"{name}={getattr(self, name)} must be >= {least}"
        if self.standby not in CHOICES:
            yield f"standby={self.standby!r} must be one of {', '.join(CHOICES)}"
        if not 0 <= self.rdzv_port < 65_536:
            yield f"rdzv_port={self.rdzv_port} must be 0 (one that follows from run_dir) to 65535"

    def range(self) -> tuple[int, int]:
        """Return the least and the most nodes.

        Raises:
            ValueError: `nodes` is neither N nor MIN:MAX.
        """
        match = re.fullmatch(r"(?:([1-9]\d*):)?([1-9]\d*)", self.nodes)
        most = int(match[2]) if match else 0
        least = int(match[1]) if match and match[1] else most
        if not 0 < least <= most:
            raise ValueError(self.nodes)
        return least, most


def _app(node: NodeSpec, agent: AgentOptions, run_dir: str, config: str, app_args: Sequence[str]) -> specs.AppDef:
    problems = [*node.problems(run_dir), *agent.problems(node.gpu)]
    if not config.endswith((".yaml", ".yml", ".json")):
        problems.append(f"config={config!r}: expected a YAML file, such as pipeline/configs/digits.yaml")
    if problems:
        raise UserError(*problems)
    return agent_app("train", node, agent, run_dir, ["fit", "--config", config, "--run_dir", run_dir, *app_args])


def agent_app(name: str, node: NodeSpec, agent: AgentOptions, run_dir: str, arguments: Sequence[str]) -> specs.AppDef:
    """Return an app whose nodes run one command line of the pipeline under an agent each.

    Args:
        name: Of the app and its role.
        node: What each node has.
        agent: How the agents run.
        run_dir: What a preflight checks.
        arguments: Of `python -m pipeline`.
    """
    least, most = agent.range()
    per_node = agent.processes or max(node.gpu, 1)
    port = agent.rdzv_port or port_of(run_dir)
    # The scheduler puts the address of node 0 into a variable of its own; on one machine there may be none.
    endpoint = f'"$${{{macros.rank0_env}:-localhost}}:{port}"'
    checked = shlex.join(["--run_dir", run_dir, "--gpus", str(node.gpu), "--shm", str(node.shm)])
    command = (
        f"python -m pipeline.agent --rdzv-backend c10d --rdzv-endpoint {endpoint} --rdzv-id {macros.app_id} "
        f"--nnodes {f'{least}:{most}' if least != most else most} --nproc-per-node {per_node} "
        f"--rdzv-conf join_timeout={agent.join_timeout} --max-restarts {agent.max_restarts} "
        f"--shutdown-timeout {agent.grace} "
    )
    command += f"--preflight {quoted([checked])} " if agent.preflight else ""
    command += f"--standby {agent.standby} " if agent.standby != AUTO else ""
    command += f"--role {name} -m pipeline {quoted(arguments)}"
    # A node that ends first makes the agents of the others warn of a lost connection.
    quiet = {"LOGLEVEL": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR", **(node.env or {})}
    role = replace(node, env=quiet).role(name, command, max(1, node.cpu // per_node), grace=agent.grace)
    role.num_replicas, role.min_replicas = most, least if least != most else None
    role.port_map = {"c10d": port, **_metrics_port(arguments)}
    return specs.AppDef(name=name, roles=[role])


def _metrics_port(arguments: Sequence[str]) -> dict[str, int]:
    """Return the port at which the app shows its figures, if it was asked to, by its name in the role."""
    found = re.findall(r"--metrics_port[= ](\d+)(?= |$)", " ".join(arguments))
    return {METRICS: int(found[-1])} if found else {}


def port_of(run_dir: str) -> int:
    """Return the rendezvous port of a run, below the range from which systems assign client ports.

    The same run has the same one in each manifest; runs that share a machine most likely have different ones.
    """
    digest = hashlib.sha256(run_dir.encode()).digest()
    return _PORTS[int.from_bytes(digest[:8]) % len(_PORTS)]
