"""Training on one or several nodes.

torchx run -s local_cwd components/train.py:train --run_dir runs/one --nodes 2 --config pipeline/configs/digits.yaml
torchx run -s local_cwd components/train.py:train --run_dir runs/one -- --trainer.max_epochs=3
"""

import random
import re
import shlex
import socket
from typing import Dict, List, Optional  # noqa: UP035 - what TorchX 0.7's component linter reads

from torchx import specs
from torchx.specs import macros

from components.role import IMAGE, Needs, problems_of, quoted, role
from pipeline.errors import UserError

_PORTS = range(20_000, 30_000)


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
) -> specs.AppDef:
    """Train by DDP over nodes; run it again with the same run_dir to go on.

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
        secrets: variables whose values the launcher takes from the environment, and never shows, as A,B
        shm: MB of /dev/shm; 0 means what the launcher gives
        retries: how often a container is started again that has ended with neither 0 nor 2, where the launcher can
        max_restarts: how often the processes are restarted in place after a crash; never after a user's mistake
        grace: seconds that the processes have after SIGTERM, for a step, a save and its upload
        join_timeout: seconds that the nodes wait for each other, at the start and for a node that is replaced
        rdzv_port: port on node 0 where the nodes meet; 0 means one that is free on this machine
        preflight: true: look at all nodes, their storage and their network before training; it takes some seconds

    Returns:
        The AppDef, with the one role `train`.

    Raises:
        UserError: Arguments that cannot work; all of them at once.
    """
    problems = problems_of(run_dir, cpu, memory, gpu, mounts, env, secrets, shm, retries)
    match = re.fullmatch(r"(?:([1-9]\d*):)?([1-9]\d*)", nodes)
    most = int(match[2]) if match else 1
    least = int(match[1]) if match and match[1] else most
    if not match or least > most:
        problems.append(f"nodes={nodes!r}: allowed are a number such as 2, or MIN:MAX such as 1:4")
    if processes < 0:
        problems.append(f"processes={processes}: allowed are 0 (one per GPU) and more per node")
    if 0 < gpu < processes:
        problems.append(f"processes={processes} on gpu={gpu}: each process needs a device of its own")
    if max_restarts < 0:
        problems.append(f"max_restarts={max_restarts}: allowed are 0 and more")
    for name, seconds in (("grace", grace), ("join_timeout", join_timeout)):
        if seconds < 1:
            problems.append(f"{name}={seconds}: allowed are 1 second and more")
    if not config.endswith((".yaml", ".yml", ".json")):
        problems.append(f"config={config!r}: expected a YAML file, such as pipeline/configs/digits.yaml")
    if not 0 <= rdzv_port < 65_536:
        problems.append(f"rdzv_port={rdzv_port}: allowed are 0 (a free one) to 65535")
    if problems:
        raise UserError(*problems)

    per_node = processes or max(gpu, 1)
    port = rdzv_port or _free_port()
    # The scheduler puts the address of node 0 into a variable of its own; on one machine there may be none.
    endpoint = f'"$${{{macros.rank0_env}:-localhost}}:{port}"'
    looked_at = ["--run_dir", run_dir, "--gpus", str(gpu), "--shm", str(shm)]
    command = (
        f"python -m pipeline.agent --rdzv-backend c10d --rdzv-endpoint {endpoint} --rdzv-id {macros.app_id} "
        f"--nnodes {f'{least}:{most}' if least != most else most} --nproc-per-node {per_node} "
        f"--rdzv-conf join_timeout={join_timeout} --max-restarts {max_restarts} --shutdown-timeout {grace} "
        + (f"--preflight {quoted([shlex.join(looked_at)])} " if preflight else "")
        + f"--role train -m pipeline fit --config {quoted([config])} --run_dir {quoted([run_dir, *app_args])}"
    )
    return specs.AppDef(
        name="train",
        roles=[
            role(
                "train",
                command,
                image=image,
                cpu=cpu,
                memory=memory,
                gpu=gpu,
                threads=max(1, cpu // per_node),
                # The agents' own good-byes: a node that ends first makes the others warn of a lost connection.
                env={"LOGLEVEL": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR", **(env or {})},
                mounts=mounts,
                needs=Needs(tuple(secrets or ()), shm, grace),
                retries=retries,
                nodes=most,
                min_nodes=least if least != most else None,
                port_map={"c10d": port},
            )
        ],
    )


def _free_port() -> int:
    """A port that nobody listens on here, below the range from which systems give ports to clients.

    Drawn at random, so that two runs that start on one machine at once do not both find the same one free.
    """
    ports = random.SystemRandom().sample(_PORTS, 100)
    for port in ports:
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise UserError(f"none of 100 ports in {_PORTS.start}..{_PORTS.stop - 1} is free: give one by --rdzv_port")
