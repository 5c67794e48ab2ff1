"""Evaluation: always one node, one process, one device, so that each test sample is scored exactly once.

torchx run -s local_cwd evaluate --run_dir runs/one
"""

from typing import Dict, List, Optional  # noqa: UP035 - what TorchX 0.7's component linter reads

from torchx import specs

from components.role import IMAGE, NodeSpec, quoted
from pipeline.errors import UserError


def evaluate(
    *app_args: str,
    run_dir: str,
    checkpoint: str = "",
    cpu: int = 2,
    memory: int = 4096,
    gpu: int = 0,
    image: str = IMAGE,
    env: Optional[Dict[str, str]] = None,  # noqa: UP006, UP045
    mounts: Optional[List[str]] = None,  # noqa: UP006, UP045
    secrets: Optional[List[str]] = None,  # noqa: UP006, UP045
    shm: int = 0,
    retries: int = 3,
) -> specs.AppDef:
    """Score the test set of a run once, on one device, and leave a receipt.

    Args:
        app_args: the app's own flags, after --, such as --data.init_args.batch_size=64
        run_dir: the run to evaluate: a path or an fsspec URL
        checkpoint: best, latest or a step; empty means the best where a metric was monitored, else the latest
        cpu: cores
        memory: MB of memory
        gpu: GPUs, 0 or 1
        image: container image
        env: environment of the process, as A=1,B=2
        mounts: mounts, as type=bind,src=/on/the/host,dst=/in/the/container
        secrets: variables whose values the launcher takes from its environment and never prints, as A,B
        shm: MB of /dev/shm; 0 means the launcher's default
        retries: how often the launcher restarts a container that ended with neither 0 nor 2, where it can
    """
    node = NodeSpec(image, cpu, memory, gpu, env, mounts, secrets, shm, retries)
    problems = node.problems(run_dir)
    if gpu > 1:
        problems.append(f"gpu={gpu} must be 0 or 1: several devices would score samples twice")
    if checkpoint not in ("", "best", "latest") and not checkpoint.isdecimal():
        problems.append(f"checkpoint={checkpoint!r} must be best, latest or a step such as 120")
    if problems:
        raise UserError(*problems)
    chosen = ["--checkpoint", checkpoint] if checkpoint else []
    command = f"python -m pipeline test --run_dir {quoted([run_dir, *chosen, *app_args])}"
    return specs.AppDef(name="evaluate", roles=[node.role("evaluate", command, threads=cpu)])
