"""One node's part in a job: torch's elastic agent, with our policy of restarts and exit statuses.

A round: rendezvous, start the workers, watch them and the other nodes, follow the verdict (`pipeline.agent.policy`).
Whatever may block on a network runs in a thread (`pipeline.agent.event_log`, `pipeline.agent.rendezvous`); the main
thread alone starts and ends processes.
"""

import shlex
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.launcher.api import LaunchConfig

from pipeline.agent import compat, pdeathsig
from pipeline.agent.event_log import JOB_STATUS, EventLog, leave_job, round_log
from pipeline.agent.policy import Event, EventType, JobEnd, speaks
from pipeline.agent.rendezvous import JobAlreadyFinished, Rendezvous, RendezvousTimeout, RoundHandler
from pipeline.agent.signals import Signals, StopRequested
from pipeline.agent.standby import Standby
from pipeline.agent.supervisor import NodeState, Supervisor
from pipeline.agent.workers import Workers
from pipeline.errors import DONE, INTERRUPTED, PREEMPTED

_RESTARTS_USED = "spent"


class NodeAgent:
    """Runs a node's workers to their end.

    Args:
        config: As torchrun's command line gives it.
        program: Command of each worker.
        signals: Of this process, already listening.
        grace: Seconds that workers have after SIGTERM.
        preflight: Arguments of a preflight, which runs before the workers of each round that has a node without one;
            empty for none.
        standby: From which workers are forked; None: they start cold.

    Attributes:
        speaks: Whether this agent tells how the job has ended; before the first round that of a single node does.
    """

    def __init__(
        self,
        config: LaunchConfig,
        program: list[str],
        signals: Signals,
        grace: float,
        preflight: str = "",
        standby: Standby | None = None,
    ) -> None:
        parameters = RendezvousParameters(
            backend=config.rdzv_backend,
            endpoint=config.rdzv_endpoint,
            run_id=config.run_id,
            min_nodes=config.min_nodes,
            max_nodes=config.max_nodes,
            local_addr=config.local_addr,
            **config.rdzv_configs,
        )
        self.speaks = config.max_nodes == 1
        self._program = program
        self._preflight = preflight
        self._local = compat.local_agent(config, sys.executable)
        self._rendezvous = Rendezvous(parameters, signals)
        self._state = NodeState(
            host=config.local_addr or socket.gethostname(),
            signals=signals,
            grace=grace,
            interval=config.monitor_interval,
            max_restarts=config.max_restarts,
            standby=standby or Standby(()),
        )

    def serve(self) -> JobEnd:
        """Run rounds until the job is over, or this node's part in it.

        Returns:
            How it ended; all workers have.
        """
        while True:
            try:
                self._rendezvous.run(self._join)
                end = self._run_round()
            except StopRequested:
                return self._stopped_without_workers()
            except RendezvousTimeout as error:
                return JobEnd(self._state.status, str(error))
            except JobAlreadyFinished:
                return self._already_finished()
            if end is not None:
                return end

    def _join(self, handler: RoundHandler) -> None:
        """Take part in one round of the rendezvous. Runs in a thread."""
        # A replacement takes over the job's restart budget, which the others write down before they join.
        store, state = handler.job_store(), self._state
        if state.restarts_used > _restarts_used(store):
            store.set(_RESTARTS_USED, str(state.restarts_used))
        compat.assign_ranks(self._local, handler)
        state.restarts_used = max(state.restarts_used, _restarts_used(store))
        self._preflight_of_round = self._agree_on_preflight(handler)
        self._log = EventLog(handler, round_log(handler))

    def _agree_on_preflight(self, handler: RoundHandler) -> str:
        """Return the arguments of this round's preflight on all nodes: those of the first node that has passed none."""
        group: Any = self._local.get_worker_group()
        store = dist.PrefixStore("pipeline.agent/preflight", handler.round_store())
        store.set(str(group.group_rank), "" if self._state.preflight_passed else self._preflight)
        if group.group_rank == 0:
            # One answer for all: if each node read what each other one wants, the store would send nodes ** 2 values.
            wanted = store.multi_get([str(rank) for rank in range(group.group_world_size)])
            store.set("agreed", next((arguments.decode() for arguments in wanted if arguments), ""))
        return store.get("agreed").decode()

    def _run_round(self) -> JobEnd | None:
        """Run one round, and decide who tells of it."""
        round_ = self._start_round()
        nodes = round_.handler.ranks()
        end = round_.run()
        signalled = bool(self._state.signals.received)
        self.speaks = speaks(round_.log.events, round_.handler.node, nodes, round_.log.alive, signalled)
        return end

    def _start_round(self) -> Supervisor:
        """Start the workers, in the thread with whose end the kernel kills them."""
        state, handler = self._state, self._rendezvous.handler
        assert handler is not None
        state.signals.check()
        program = self._program
        if self._preflight_of_round:
            program = [sys.executable, "-m", "pipeline", "preflight", *shlex.split(self._preflight_of_round)]
        cold = pdeathsig.tied()
        if not self._preflight_of_round:
            state.standby.await_ready(state.signals)

        def fork(command: Sequence[str], environment: dict[str, str], streams: Sequence[int]) -> Any:
            # What torch puts before it, such as the binding to a NUMA node, only a cold start can do.
            plain = tuple(command[: len(cold)]) == cold
            return state.standby.fork(command[len(cold) :], environment, streams) if plain else None

        left = max(0, state.max_restarts - state.restarts_used)
        processes = compat.start_workers(self._local, (*cold[1:], *program), left, fork)
        ranks = {worker.local_rank: worker.global_rank for worker in self._local.get_worker_group().workers}
        workers = Workers(processes, ranks, state.grace, state.signals)
        self._log.start()
        return Supervisor(state, handler, workers, self._log, bool(self._preflight_of_round))

    def _stopped_without_workers(self) -> JobEnd:
        signals = self._state.signals
        reason = f"node {self._state.host} received {signals.name()} before its workers were started"
        handler = self._rendezvous.handler
        if handler is not None:
            # The round may be complete already, and the other nodes would take it for a crash.
            leaving = Event(handler.node, EventType.LEAVING, reason=reason)
            leave_job(handler, leaving, Event(handler.node, EventType.LEFT))
        return JobEnd(INTERRUPTED if signals.interrupted else PREEMPTED, reason)

    def _already_finished(self) -> JobEnd:
        """Exit as the other nodes did."""
        handler, status = self._rendezvous.handler, DONE
        with suppress(RendezvousError, RuntimeError, ValueError):
            if handler is not None and handler.job_store().check([JOB_STATUS]):
                status = int(handler.job_store().get(JOB_STATUS))
        return JobEnd(status, "" if status == DONE else f"job finished with status {status} before this node joined")


def _restarts_used(store: dist.Store) -> int:
    return int(store.get(_RESTARTS_USED)) if store.check([_RESTARTS_USED]) else 0
