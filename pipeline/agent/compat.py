"""Every private member of torch that the agent uses, why, and a check that this torch has it as expected.

Whoever upgrades torch looks here: the rest of `pipeline/agent` uses torch's public names and the functions below.
`check_torch` runs at import, and names the member that is missing together with torch's version.
"""

import inspect
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import chain, repeat
from typing import Any, cast

import torch
from torch.distributed.elastic.agent.server import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import api as multiprocessing
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
from torch.distributed.elastic.rendezvous import RendezvousHandler, dynamic_rendezvous, utils
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler
from torch.distributed.launcher.api import LaunchConfig
from torch.distributed.run import config_from_args, get_args_parser

from pipeline.errors import UserError

_SOON_SECONDS = 0.03
_FEW_NODES = 16
_torch_delay = dynamic_rendezvous._delay
Fork = Callable[[Sequence[str], dict[str, str], Sequence[int]], Any]

_CALLED: tuple[tuple[Any, str, str], ...] = (
    # Where it is, a method or function, its parameters.
    (LocalElasticAgent, "_rendezvous", "self worker_group"),
    (LocalElasticAgent, "_start_workers", "self worker_group"),
    (SubprocessHandler, "_popen", "self args env"),
    (DynamicRendezvousHandler, "_stop_heartbeats", "self"),
    (dynamic_rendezvous, "_DistributedRendezvousOpExecutor.run", "self state_handler deadline update_deadline"),
    (utils, "_matches_machine_hostname", "host"),
)
_SET_OR_READ: tuple[tuple[Any, str, str], ...] = (
    # Where it is, a method, the attributes that this must set or read.
    (LocalElasticAgent, "_start_workers", "_pcontext _remaining_restarts"),
    (SubprocessHandler, "__init__", "_popen _stderr _stdout"),
    (DynamicRendezvousHandler, "__init__", "_op_executor"),
    (DynamicRendezvousHandler, "next_rendezvous", "_bootstrap_store_info _shared_tcp_store_server"),
    (DynamicRendezvousHandler, "next_rendezvous", "_state_holder"),
    (dynamic_rendezvous, "_BackendRendezvousStateHolder.sync", "_cache_duration"),
    (dynamic_rendezvous, "_RendezvousState.__init__", "complete participants redundancy_list round wait_list"),
    (dynamic_rendezvous, "_RendezvousContext.__init__", "node state"),
    (dynamic_rendezvous, "_DistributedRendezvousOpExecutor.run", "ERROR_TIMEOUT FINISH SYNC _delay"),
    (dynamic_rendezvous, "_DistributedRendezvousOpExecutor.run", "REMOVE_FROM_PARTICIPANTS"),
    (dynamic_rendezvous, "_DistributedRendezvousOpExecutor.run", "REMOVE_FROM_WAIT_LIST REMOVE_FROM_REDUNDANCY_LIST"),
)


def check_torch() -> None:
    """Check that this torch has what is used here.

    Raises:
        UserError: It has not; names all that is missing.
    """
    missing = []
    for owner, path, parameters in _CALLED:
        function = _find(owner, path)
        if function is None or " ".join(inspect.signature(function).parameters) != parameters:
            missing.append(f"{owner.__name__}.{path}({parameters.replace(' ', ', ')})")
    for owner, path, names in _SET_OR_READ:
        code = getattr(inspect.unwrap(_find(owner, path)), "__code__", None)
        used = code.co_names if code else ()
        missing += [f"{owner.__name__}.{name}" for name in names.split() if name not in used]
    # Before 2.10 torch replaces the agent's signal handlers, and nothing turns that off.
    if "TORCHELASTIC_SIGNALS_TO_HANDLE" not in multiprocessing.PContext.start.__code__.co_consts:
        missing.append("TORCHELASTIC_SIGNALS_TO_HANDLE")
    if missing:
        raise UserError(
            f"torch {torch.__version__} does not have what pipeline.agent needs ({', '.join(missing)}): install the "
            "torch of constraints.txt, or adapt pipeline/agent/compat.py"
        )


def _find(owner: Any, path: str) -> Any:
    for name in path.split("."):
        owner = getattr(owner, name, None)
    return owner


check_torch()


# ---- torchrun's arguments


def launch_config(options: Namespace, defaults: Namespace) -> tuple[LaunchConfig, list[str]]:
    """Return torch's configuration for torchrun's options, and the command of a worker.

    Args:
        options: As `pipeline.agent.arguments` has parsed them; other torch versions know fewer or more.
        defaults: The same without a command line.

    Raises:
        UserError: An option is set that this torch does not know.
        ValueError: The options contradict each other; AssertionError and RuntimeError, too.
    """
    known = get_args_parser().parse_args(["script"])
    handled_here = {"preflight", "shutdown_timeout", "signals_to_handle", "standby"}
    unknown = sorted(vars(options).keys() - vars(known).keys() - handled_here)
    if problems := [name for name in unknown if getattr(options, name) != getattr(defaults, name)]:
        raise UserError(*(f"{name}: torch {torch.__version__} has no such option" for name in problems))
    config, program, rest = config_from_args(Namespace(**{**vars(known), **vars(options)}))
    return config, [cast("str", program), *rest]


# ---- torch's agent


def local_agent(config: LaunchConfig, entrypoint: str) -> LocalElasticAgent:
    """Return torch's agent, of which only the assignment of ranks and the start of processes are used."""
    given = {"max_restarts", "monitor_interval", "local_addr", "role", "event_log_handler", "numa_options"}
    given |= {"duplicate_stdout_filters", "duplicate_stderr_filters", "virtual_local_rank"}
    spec = WorkerSpec(
        local_world_size=config.nproc_per_node,
        entrypoint=entrypoint,
        rdzv_handler=cast("RendezvousHandler", None),  # set before each rendezvous
        **{field.name: getattr(config, field.name) for field in fields(WorkerSpec) if field.name in given},
    )
    assert config.logs_specs is not None
    return LocalElasticAgent(spec, config.logs_specs, log_line_prefix_template=config.log_line_prefix_template)


def assign_ranks(agent: LocalElasticAgent, handler: RendezvousHandler) -> None:
    """Join a rendezvous and assign ranks. torch offers both only as part of `run`, which restarts by its own policy."""
    group = agent.get_worker_group()
    group.spec.rdzv_handler = handler
    agent._rendezvous(group)


def start_workers(
    agent: LocalElasticAgent, arguments: tuple[str, ...], restarts_left: int, fork: Fork
) -> SubprocessContext:
    """Start the processes of this node. torch sets their environment from what `assign_ranks` has found.

    Args:
        agent: Of this node.
        arguments: Of each worker.
        restarts_left: From which torch computes TORCHELASTIC_RESTART_COUNT.
        fork: Starts a process from its command line, environment and standard streams; where it returns None, torch
            starts the process itself.
    """
    group = agent.get_worker_group()
    group.spec.args = arguments
    agent._remaining_restarts = restarts_left
    cold = SubprocessHandler._popen

    def popen(handler: Any, args: tuple[str, ...], env: dict[str, str]) -> Any:
        streams = [0, *(file.fileno() if file else fd for fd, file in ((1, handler._stdout), (2, handler._stderr)))]
        return fork(args, env, streams) or cold(handler, args, env)

    SubprocessHandler._popen = popen  # type: ignore[method-assign, assignment]
    try:
        agent._start_workers(group)
    finally:
        SubprocessHandler._popen = cold  # type: ignore[method-assign]
    assert isinstance(agent._pcontext, SubprocessContext)
    return agent._pcontext


# ---- torch's rendezvous


def forget_round_store(handler: DynamicRendezvousHandler) -> None:
    """Make the next rendezvous create a new store for its workers.

    torch keeps the address of the first round's store, so that a node that replaces another one waits for an address
    that is never published, and workers of a later round would find the keys of an earlier one.
    """
    handler._bootstrap_store_info = None
    handler._shared_tcp_store_server = None


def soon(nodes: int) -> float:
    """Return the seconds between two polls of a store by each of so many nodes, where an answer is likely to come."""
    return _SOON_SECONDS * max(1.0, nodes / _FEW_NODES)


@contextmanager
def frequent_polls(handler: DynamicRendezvousHandler) -> Iterator[None]:
    """Have a rendezvous look for the other nodes often at first, the less often the more of them there may be.

    torch looks once a second, and keeps what it has read for as long, which is most of the time of a restart.
    """
    state: Any = handler._state_holder
    first = soon(handler.settings.max_nodes)
    delays = chain([first * 1.5**count for count in range(9)], repeat(1.0))

    def delay(seconds: float | tuple[float, float]) -> None:
        _torch_delay(seconds if isinstance(seconds, tuple) else min(seconds, next(delays)))

    dynamic_rendezvous._delay, state._cache_duration = delay, 0
    try:
        yield
    finally:
        state._cache_duration = 1


def leave(handler: DynamicRendezvousHandler, seconds: float) -> None:
    """Remove this node from the rendezvous, whichever of its lists it is on. torch can only close it for all nodes.

    Raises:
        RendezvousError: The store is lost, or it does not answer in time.
    """
    action = dynamic_rendezvous._Action

    def step(context: Any, deadline: float) -> Any:
        state, node = context.state, context.node
        if time.monotonic() > deadline:
            return action.ERROR_TIMEOUT
        if node in state.participants:
            return action.REMOVE_FROM_PARTICIPANTS
        if node in state.wait_list:
            return action.REMOVE_FROM_WAIT_LIST
        if node in state.redundancy_list:
            return action.REMOVE_FROM_REDUNDANCY_LIST
        return action.FINISH

    handler._op_executor.run(step, time.monotonic() + seconds)


def stop_heartbeats(handler: DynamicRendezvousHandler) -> None:
    """Send no more heartbeats. Waits for one that is being sent, for as long as the store's timeout."""
    handler._stop_heartbeats()


def is_this_machine(host: str) -> bool:
    """Return whether a host name or address is this machine's, as torch decides who hosts the store."""
    return utils._matches_machine_hostname(host)
