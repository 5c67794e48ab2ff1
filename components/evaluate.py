"""Evaluation: always one node, one process, one device, so that each test sample is scored exactly once.

torchx run -s local_cwd components/evaluate.py:evaluate --run_dir runs/one
"""

from typing import Dict, List, Optional  # noqa: UP035 - what TorchX 0.7's component linter reads

from torchx import specs

from components.role import IMAGE, Needs, problems_of, quoted, role
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
        secrets: variables whose values the launcher takes from the environment, and never shows, as A,B
        shm: MB of /dev/shm; 0 means what the launcher gives
        retries: how often a container is started again that has ended with neither 0 nor 2, where the launcher can

    Returns:
        The AppDef, with the one role `evaluate`.

    Raises:
        UserError: Arguments that cannot work; all of them at once.
    """
    problems = problems_of(run_dir, cpu, memory, gpu, mounts, env, secrets, shm, retries)
    if gpu > 1:
        problems.append(f"gpu={gpu}: allowed are 0 and 1, for on several devices samples would be scored twice")
    if checkpoint and checkpoint not in ("best", "latest") and not checkpoint.isdecimal():
        problems.append(f"checkpoint={checkpoint!r}: allowed are best, latest and a step such as 120")
    if problems:
        raise UserError(*problems)
    chosen = ["--checkpoint", checkpoint] if checkpoint else []
    return specs.AppDef(
        name="evaluate",
        roles=[
            role(
                "evaluate",
                f"python -m pipeline test --run_dir {quoted([run_dir, *chosen, *app_args])}",
                image=image,
                cpu=cpu,
                memory=memory,
                gpu=gpu,
                threads=cpu,
                env=env,
                mounts=mounts,
                needs=Needs(tuple(secrets or ()), shm),
                retries=retries,
            )
        ],
    )
