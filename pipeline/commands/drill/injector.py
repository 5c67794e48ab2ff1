"""Runs a job under faults: waits for the moment of each, injects it, and judges what becomes of the job."""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from signal import SIGKILL, SIGTERM
from tempfile import TemporaryDirectory

from pipeline.checkpoint.commit import CommitRecord, examined
from pipeline.commands.drill.fault_result import FaultResult, JobBefore, judge, new_step
from pipeline.commands.drill.local_job import JobFailure, LocalJob, is_running, send
from pipeline.commands.drill.plan import Fault, FaultKind
from pipeline.commands.drill.proxy import Proxy
from pipeline.commands.drill.step_log import StepLog, set_pace
from pipeline.errors import PREEMPTED
from pipeline.run.goodput_report import SOURCES
from pipeline.run.run_dir import RunDir

SECONDS_PER_FAULT = 3.0
"""Of training."""
SLOWEST_STEP = 2.0
"""Seconds that a step waits at most."""

_STALLED = 120.0
"""Seconds without a step or an end, after which the job has failed."""
_PROMPT = 15.0
"""Seconds in which a job must have ended that was asked to before its first step: far less than its grace."""
_SECOND_SIGNAL = 0.3  # after the one before
_WAITS = ("does not answer, retrying", "still waiting for")
"""What a start says of what is away."""
_CACHE = "PIPELINE_CACHE_DIR"
_POLL = 0.03
_POLL_STORAGE = 0.4
"""Seconds between two looks at the job, and at what its storage holds."""


class FaultInjector:
    """One job, from its start to its end.

    Args:
        job: Is launched here.
        run: Its run directory.
        log: Its step log.
        proxies: Are between the job and what can be away: the storage for OUTAGE and OUTAGE_START, the data for
            OUTAGE_DATA.
    """

    def __init__(
        self, job: LocalJob, run: RunDir, log: StepLog, proxies: Mapping[FaultKind, Proxy] | None = None
    ) -> None:
        self._job, self._run, self._log, self._proxies = job, run, log, proxies or {}
        self._truncated: list[int] = []
        self._progress, self._progressed = (0, 0, 0), time.monotonic()
        self._moment = time.monotonic()
        self._durable_at_restart: int | None = None
        self._restarts = True
        self._steps = 0

    def run_undisturbed(self) -> None:
        """Run the job to its end, without restarting anything.

        Raises:
            JobFailure: It did not end well.
        """
        self._restarts = False
        self._job.launch()
        self._run_to_the_end()

    def run_under(self, results: Sequence[FaultResult], steps: int, report: Callable[[FaultResult], None]) -> None:
        """Run the job to its end under faults, restarting it as a launcher does.

        Args:
            results: Of the planned faults, in which what becomes of each is noted.
            steps: Of the whole training.
            report: Called with each result.

        Raises:
            JobFailure: It did not come to its end.
        """
        self._steps = steps
        self._job.launch()
        for index, result in enumerate(results):
            left = max(1, steps - self._log.highest)
            set_pace(self._log.folder, min(SLOWEST_STEP, SECONDS_PER_FAULT * (len(results) - index) / left))
            if not self._wait_for_moment(result.fault):
                break  # training has ended
            self._inject(result, results[index + 1].fault if index + 1 < len(results) else None)
            report(result)
        set_pace(self._log.folder, 0.0)
        self._run_to_the_end()

    def remove_truncated(self) -> list[str]:
        """Remove the truncated checkpoints that were not saved again, which `verify` would rightly find.

        Returns:
            What was removed, in words.
        """
        removed = []
        for step, found in list(examined(self._run)):
            if step in self._truncated and not isinstance(found, CommitRecord):
                for name in (RunDir.record(step), RunDir.checkpoint(step)):
                    self._run.remove(name)
                removed.append(f"removed the checkpoint of step {step}, which was truncated and not saved again")
        return removed

    def _run_to_the_end(self) -> None:
        self._until(lambda: False)
        self._log.read()

    def _wait_for_moment(self, fault: Fault) -> bool:
        """Wait for the moment of a fault; return False where the job has ended before."""
        job, step = self._job, fault.planned_step
        if step is not None:
            reached = self._until(lambda: self._log.highest >= step)
            if fault.kind is FaultKind.TRUNCATE:
                reached = reached and self._until(lambda: len(self._commits(2)) == 2, _POLL_STORAGE)
            self._moment = time.monotonic()
            if not reached:
                return False
        if not self._until(lambda: time.monotonic() - self._moment >= fault.delay):
            return False
        if fault.kind.scope == "rank":
            return self._until(lambda: len(job.workers(fault.node)) > fault.process)
        return self._until(lambda: job.agent(fault.node) is not None)

    def _inject(self, result: FaultResult, following: Fault | None) -> None:
        fault, log, job = result.fault, self._log, self._job
        durable = self._durable()
        log.read()
        pid = log.first[-1].pid if log.first and is_running(log.first[-1].pid) else None
        before = JobBefore(len(log.first), pid, durable)
        result.step = log.first[-1].step if pid is not None else None
        ended, starts, self._durable_at_restart = len(job.endings), job.starts, None
        result.injected = True
        began = time.time()
        self._do(result, before)
        if following is None or following.planned_step is not None:
            self._until(lambda: new_step(fault, before, log.first) is not None)
        elif fault.kind is not FaultKind.KILL_RANK:
            self._until(lambda: job.starts > starts or new_step(fault, before, log.first) is not None)
        new = new_step(fault, before, log.first)
        result.seconds = None if new is None else new.at - began
        self._moment = time.monotonic()
        result.ended = [status for _, status in job.endings[ended:]]
        judge(result, before, log.first, self._durable_at_restart, job.nodes)
        if result.resumed is not None and (attempts := self._run.attempts()):
            source = (self._run.read_json(RunDir.attempt(max(attempts))) or {}).get("resumed_from")
            result.source = source if source in SOURCES else None

    def _do(self, result: FaultResult, before: JobBefore) -> None:
        fault, job = result.fault, self._job
        if fault.kind is FaultKind.TRUNCATE:
            before.durable = self._truncate()
        elif fault.kind is FaultKind.OUTAGE:
            self._outage(result, before.durable)
        elif fault.kind in (FaultKind.OUTAGE_START, FaultKind.OUTAGE_DATA):
            self._start_in_outage(fault)
        elif fault.kind is FaultKind.RESIZE:
            self._resize()
        elif fault.kind is FaultKind.EXTEND:
            self._extend(result)
        elif fault.kind is FaultKind.KILL_ALL:
            job.kill()
        elif fault.kind is FaultKind.TERM_TWICE:
            self._ask_again_and_again(fault)
        elif fault.kind is FaultKind.TERM_START:
            self._ask_while_starting(result)
        else:
            if fault.kind.scope == "agent":
                job.replaced.add(fault.node)
            agent = job.agent(fault.node)
            targets = {
                "rank": job.workers(fault.node)[fault.process : fault.process + 1],
                "agent": [] if agent is None else [agent],
                "all": job.agents(),
            }
            send(targets[fault.kind.scope], SIGTERM if fault.kind.asks else SIGKILL)

    def _truncate(self) -> int:
        """Kill the job and truncate its newest checkpoint; return the step before it."""
        self._job.kill()
        newest, good = self._commits(2)
        self._truncated.append(newest.step)
        data = self._run.read(newest.name)
        assert data is not None
        self._run.write(newest.name, data[: newest.bytes // 2])
        return good.step

    def _outage(self, result: FaultResult, durable: int) -> None:
        proxy, entries, seconds = self._proxies[result.fault.kind], len(self._log.first), result.fault.seconds
        proxy.cut()
        try:
            self._let_pass(seconds)
        finally:
            proxy.restore()
        if len(self._log.first) == entries and result.step is not None:
            result.problems.append(f"training stood still for the {seconds:.1f} s of the outage")
        self._until_committed_after(durable)

    def _start_in_outage(self, fault: Fault) -> None:
        """Kill the job, and let it start as on a new node until it has waited for what is away."""
        job, proxy, entries = self._job, self._proxies[fault.kind], len(self._log.first)

        def waits() -> int:
            output = job.output()
            return sum(output.count(words) for words in _WAITS)

        said, environment = waits(), job.environment
        with TemporaryDirectory(prefix="pipeline-drill-cache-", ignore_cleanup_errors=True) as cold:
            job.environment = {**environment, _CACHE: cold}
            job.kill()
            proxy.cut()
            try:
                if self._until(lambda: waits() > said or len(self._log.first) > entries, _POLL_STORAGE):
                    self._let_pass(fault.seconds)
            finally:
                proxy.restore()
                job.environment = environment
            self._until(lambda: len(self._log.first) > entries)

    def _let_pass(self, seconds: float) -> None:
        began = time.monotonic()
        self._until(lambda: time.monotonic() - began >= seconds)

    def _resize(self) -> None:
        """Train with one node less until something is committed there, and then with all again."""
        self._relaunch(self._job.nodes - 1)
        self._until_committed_after(self._durable())
        self._relaunch(self._job.nodes + 1)
        entries = len(self._log.first)
        self._until(lambda: len(self._log.first) > entries)

    def _extend(self, result: FaultResult) -> None:
        """Let training end with an epoch, start it for more, and kill it before its first save."""
        job, folder = self._job, self._log.folder
        epoch = next((record.epoch for record in self._commits(1)), 0)
        job.more = (f"--trainer.max_epochs={epoch + 1}",)
        set_pace(folder, 0.0)
        self._relaunch(job.nodes)
        self._until(lambda: False)
        job.more = ()
        set_pace(folder, SLOWEST_STEP)
        entries = len(self._log.first)
        job.launch()
        if self._until(lambda: len(self._log.first) > entries):
            job.kill()
        elif self._log.highest < self._steps:
            result.problems.append(f"taken for finished at step {self._log.highest}, though it was extended")

    def _ask_again_and_again(self, fault: Fault) -> None:
        for pid in self._job.workers(fault.node)[fault.process : fault.process + 1]:
            while is_running(pid):
                send([pid], SIGTERM)
                time.sleep(_SECOND_SIGNAL)

    def _ask_while_starting(self, result: FaultResult) -> None:
        """Kill the job, and ask one of the ranks that are then started to stop before it has done a step."""
        job, fault, entries, starts = self._job, result.fault, len(self._log.first), self._job.starts
        job.kill()
        self._until(lambda: job.starts > starts and len(job.workers(fault.node)) > fault.process)
        self._let_pass(fault.delay)
        rank: list[int] = []

        def found() -> bool:
            rank[:] = job.workers(fault.node)[fault.process : fault.process + 1]
            return bool(rank)

        self._until(found)
        ended, asked = len(job.endings), time.monotonic()
        send(rank, SIGTERM)
        self._until(lambda: len(job.endings) >= ended + job.nodes)
        result.problems += [f"an agent ended with {status}" for _, status in job.endings[ended:] if status != PREEMPTED]
        seconds, started = time.monotonic() - asked, len(self._log.first) > entries
        if seconds > _PROMPT and not started:
            result.problems.append(
                f"the agents ended {seconds:.0f} s after a rank had been asked before its first step"
            )

    def _relaunch(self, nodes: int) -> None:
        job, starts = self._job, self._job.starts
        job.nodes = nodes
        send(job.agents(), SIGTERM)
        self._until(lambda: job.starts > starts)

    def _until_committed_after(self, step: int) -> None:
        self._until(lambda: self._durable() > step, _POLL_STORAGE)

    def _until(self, condition: Callable[[], bool], poll: float = _POLL) -> bool:
        """Look after the job until a condition holds; return False where the job has ended before.

        Args:
            condition: Asked again and again.
            poll: Seconds between.
        """
        while True:
            self._look_after_job()
            if self._job.done:
                return False
            if condition():
                return True
            time.sleep(poll)

    def _look_after_job(self) -> None:
        """Read what is new, and restart what has ended, as a launcher does.

        Raises:
            JobFailure: There was no progress for too long, or an agent ended as none may.
        """
        job = self._job
        due = job.due()
        progress = self._log.read(), len(job.endings), job.starts
        if due and not self._restarts:
            raise JobFailure(f"an agent ended with {job.endings[-1][1]}, though nothing was done to it")
        if due:
            self._durable_at_restart = self._durable() if self._durable_at_restart is None else self._durable_at_restart
            job.restart(due)
        if progress != self._progress:
            self._progress, self._progressed = progress, time.monotonic()
        elif time.monotonic() - self._progressed > _STALLED:
            raise JobFailure(f"no step and no end for {_STALLED:.0f} s after step {self._log.highest}")

    def _durable(self) -> int:
        return next((record.step for record in self._commits(1)), 0)

    def _commits(self, most: int) -> list[CommitRecord]:
        """Return the newest committed checkpoints."""
        # Not `committed`, which would warn of each damaged one each time.
        found = (record for _, record in examined(self._run) if isinstance(record, CommitRecord))
        return list(islice(found, most))
