"""One node's part in a job: torch's elastic agent, with our policy of restarts and exit statuses.

A round goes from one meeting of the nodes to the next: meet, start the workers, watch them and the other nodes, follow
the verdict (`pipeline.agent.policy`). Whatever may wait for a network runs in a thread (`pipeline.agent.event_log`,
`pipeline.agent.rendezvous`); processes are started and ended by the main thread alone.
"""

import os
import shlex
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import cast

import torch.distributed as dist
from torch.distributed.elastic.agent.server import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousHandler, RendezvousParameters
from torch.distributed.launcher.api import LaunchConfig

from pipeline.agent import pdeathsig as leash
from pipeline.agent.event_log import OVER, News, go, round_log
from pipeline.agent.policy import Says, Word
from pipeline.agent.rendezvous import Handler, Meeting, NotMet, Over
from pipeline.agent.signals import Asked, Signals
from pipeline.agent.supervisor import Ending, Job, RoundOfWorkers
from pipeline.agent.workers import Workers
from pipeline.errors import DONE, INTERRUPTED, PREEMPTED

_SPENT = "spent"


class NodeAgent(LocalElasticAgent):
    """Runs a node's workers to their end.

    Args:
        config: As torchrun's command line gives it.
        program: What each worker is, with its arguments.
        signals: Of this process, which already listens.
        preflight: Arguments of a preflight in a shell's quotes, which goes before the workers of each round that has a
            node which has not been looked at; empty: there is none.
    """

    def __init__(self, config: LaunchConfig, program: list[str], signals: Signals, preflight: str = "") -> None:
        parameters = RendezvousParameters(
            backend=config.rdzv_backend,
            endpoint=config.rdzv_endpoint,
            run_id=config.run_id,
            min_nodes=config.min_nodes,
            max_nodes=config.max_nodes,
            local_addr=config.local_addr,
            **config.rdzv_configs,
        )
        spec = WorkerSpec(
            role=config.role,
            local_world_size=config.nproc_per_node,
            entrypoint=sys.executable,
            args=(),  # each round says what its workers are
            rdzv_handler=cast("RendezvousHandler", None),  # there is one from the first meeting on
            max_restarts=config.max_restarts,
            monitor_interval=config.monitor_interval,
            local_addr=config.local_addr,
            event_log_handler=config.event_log_handler,
            numa_options=config.numa_options,
            duplicate_stdout_filters=config.duplicate_stdout_filters,
            duplicate_stderr_filters=config.duplicate_stderr_filters,
            virtual_local_rank=config.virtual_local_rank,
        )
        assert config.logs_specs is not None
        assert config.shutdown_timeout is not None
        super().__init__(
            spec,
            config.logs_specs,
            log_line_prefix_template=config.log_line_prefix_template,
            shutdown_timeout=config.shutdown_timeout,
        )
        self._program = program
        self._preflight = preflight
        self._meeting = Meeting(parameters, signals)
        self._job = Job(
            host=config.local_addr or socket.gethostname(),
            signals=signals,
            grace=float(config.shutdown_timeout),
            interval=config.monitor_interval,
            allowed=config.max_restarts,
        )

    def serve(self) -> Ending:
        """Run rounds until the job is over, or this node's part in it.

        Returns:
            How it ended; all workers have.
        """
        while True:
            try:
                self._meeting.meet(self._join)
                ending = self._start_round().run()
            except Asked:
                return self._asked()
            except NotMet as error:
                return Ending(self._job.after, str(error))
            except Over:
                return self._over()
            if ending is not None:
                return ending

    def _join(self, handler: Handler) -> None:
        """Take part in one round of the rendezvous. Runs in a thread."""
        self._worker_group.spec.rdzv_handler = handler
        # A node that takes another one's place goes on with the job's budget, which the others write down before they
        # meet it.
        store, job = handler.job_store(), self._job
        if job.spent > _spent(store):
            store.set(_SPENT, str(job.spent))
        self._rendezvous(self._worker_group)
        job.spent = max(job.spent, _spent(store))
        self._asks = self._asked_for(handler)
        self._news = News(handler, round_log(handler))

    def _asked_for(self, handler: Handler) -> str:
        """The preflight that this round is: the first node's that has not been looked at, as all of them say."""
        group, store = self._worker_group, dist.PrefixStore("pipeline.agent/preflight", handler.round_store())
        nodes = cast("int", group.group_world_size)
        store.set(str(group.group_rank), "" if self._job.looked_at else self._preflight)
        said = store.multi_get([str(number) for number in range(nodes)])
        return next((arguments.decode() for arguments in said if arguments), "")

    def _start_round(self) -> RoundOfWorkers:
        """Start the workers, in the thread with whose end the kernel ends them."""
        job, handler = self._job, self._meeting.handler
        assert handler is not None
        job.signals.check()
        program = self._program
        if self._asks:
            program = [sys.executable, "-m", "pipeline.commands.preflight", *shlex.split(self._asks)]
        spec = self._worker_group.spec
        spec.args = ("-I", "-S", str(Path(leash.__file__)), str(os.getpid()), *program)
        self._remaining_restarts = max(0, job.allowed - job.spent)
        self._start_workers(self._worker_group)
        assert isinstance(self._pcontext, SubprocessContext)
        ranks = {worker.local_rank: worker.global_rank for worker in self._worker_group.workers}
        self._news.start()
        return RoundOfWorkers(job, handler, Workers(self._pcontext, ranks), self._news, bool(self._asks))

    def _asked(self) -> Ending:
        signals = self._job.signals
        how = f"node {self._job.host} was asked to end by {signals.name()} while it had no workers"
        handler = self._meeting.handler
        if handler is not None:
            # They may have met a moment ago, and would take it for a crash.
            go(handler, Word(handler.node, Says.LEAVING, how=how), Word(handler.node, Says.GONE))
        return Ending(INTERRUPTED if signals.interrupted else PREEMPTED, how)

    def _over(self) -> Ending:
        """The job ended without this node: as the others did."""
        handler, status = self._meeting.handler, DONE
        with suppress(RendezvousError, RuntimeError, ValueError):
            if handler is not None and handler.job_store().check([OVER]):
                status = int(handler.job_store().get(OVER))
        return Ending(status, "" if status == DONE else "the job had ended before this node came")


def _spent(store: dist.Store) -> int:
    return int(store.get(_SPENT)) if store.check([_SPENT]) else 0
