"""Prediction with a checkpoint of a run: each sample once, on any number of devices.

torchx run -s local_cwd predict --run_dir runs/one -- --data.predict=my.Dataset
"""

from typing import Dict, List, Optional  # noqa: UP035 - what TorchX 0.7's component linter reads

from torchx import specs

from components.role import IMAGE, NodeSpec
from components.train import AgentOptions, agent_app
from pipeline.errors import UserError


def predict(
    *app_args: str,
    run_dir: str,
    checkpoint: str = "",
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
    standby: str = "auto",
) -> specs.AppDef:
    """Predict each sample once and keep it in the run; run it again to continue a prediction that was cut short.

    Args:
        app_args: the app's own flags, after --, such as --data.predict=my.Dataset
        run_dir: the run that predicts: a path or an fsspec URL that all nodes see
        checkpoint: best, latest or a step; empty means the best where a metric was monitored, else the latest
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
        grace: seconds between SIGTERM and SIGKILL
        join_timeout: seconds that the nodes wait for each other
        rdzv_port: rendezvous port on node 0; 0 means one that is free on this machine
        standby: fork processes from one that has imported everything: true, false, or auto for true without GPUs
    """
    node = NodeSpec(image, cpu, memory, gpu, env, mounts, secrets, shm, retries)
    agent = AgentOptions(nodes, processes, max_restarts, grace, join_timeout, rdzv_port, False, standby)
    problems = [*node.problems(run_dir), *agent.problems(gpu)]
    if checkpoint not in ("", "best", "latest") and not checkpoint.isdecimal():
        problems.append(f"checkpoint={checkpoint!r} must be best, latest or a step such as 120")
    if problems:
        raise UserError(*problems)
    chosen = ["--checkpoint", checkpoint] if checkpoint else []
    return agent_app("predict", node, agent, run_dir, ["predict", "--run_dir", run_dir, *chosen, *app_args])
