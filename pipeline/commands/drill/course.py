"""The course of a drill: waits for the moment of each fault, carries it out, and looks at what becomes of the job."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from signal import SIGKILL, SIGTERM

from pipeline.checkpoint.commit import CommitRecord, examined
from pipeline.commands.drill.job import Finding, Job, runs, send
from pipeline.commands.drill.notes import Note, Noted, set_pace
from pipeline.commands.drill.plan import Fault, Kind
from pipeline.commands.drill.proxy import Proxy
from pipeline.errors import PREEMPTED
from pipeline.run.run_dir import RunDir

APART = 3.0
"""Seconds of training for each fault."""
SLOWEST = 2.0
"""Seconds that a step waits at most."""

_STILL = 120.0
"""Seconds without a step or an end, after which something is wrong."""
_LOOK = 0.03
_ASK_STORAGE = 0.4


@dataclass
class Outcome:
    """What became of one fault.

    Attributes:
        fault: As planned.
        injected: Whether it was carried out: training may have ended before.
        step: Rank 0's last step before it; None: it had done none since its start.
        ended: The statuses of the agents that ended, in their order.
        resumed: The step that came next; None: another fault came first.
        repeated: Steps that it had done repeated.
        seconds: Until a step that had never been done; None: another fault came first.
        problems: What is not as it must be.
    """

    fault: Fault
    injected: bool = False
    step: int | None = None
    ended: list[int] = field(default_factory=list)
    resumed: int | None = None
    repeated: int = 0
    seconds: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether it was carried out, and nothing was lost."""
        return self.injected and not self.problems


class Course:
    """One job, from its start to its end.

    Args:
        job: Is launched here.
        run: Its run directory.
        noted: What is noted of its steps.
        check: Called again and again; raises to end it.
        proxy: Stands before the storage, where there can be an outage.

    Attributes:
        damaged: The steps whose checkpoints were truncated.
        says: Is told of each outcome.
    """

    def __init__(
        self, job: Job, run: RunDir, noted: Noted, check: Callable[[], None], proxy: Proxy | None = None
    ) -> None:
        self.damaged: list[int] = []
        self.says: Callable[[Outcome], None] = lambda _: None
        self._job = job
        self._run = run
        self._noted = noted
        self._check = check
        self._proxy = proxy
        self._moved, self._seen = time.monotonic(), (0, 0, 0)
        self._started = time.monotonic()
        self._safe: int | None = None
        self._again = True

    def straight(self) -> None:
        """Run the job to its end as it is, without starting anything again.

        Raises:
            Finding: It did not end well.
        """
        self._again = False
        self._job.launch()
        self._until(lambda: False)
        self._noted.read()

    def under(self, outcomes: Sequence[Outcome], steps: int) -> None:
        """Run the job to its end under faults, starting it again as a launcher does.

        Args:
            outcomes: Of the planned faults; what becomes of each is written into it.
            steps: Of the whole training.

        Raises:
            Finding: It did not come to its end.
        """
        self._job.launch()
        for index, outcome in enumerate(outcomes):
            left = max(1, steps - self._noted.highest)
            set_pace(self._noted.folder, min(SLOWEST, APART * (len(outcomes) - index) / left))
            if not self._moment(outcome.fault):
                break  # training has ended
            self._carry_out(outcome, outcomes[index + 1].fault if index + 1 < len(outcomes) else None)
            self.says(outcome)
        set_pace(self._noted.folder, 0.0)
        self._until(lambda: False)
        self._noted.read()

    def clear_damaged(self) -> list[str]:
        """Remove the checkpoints that were truncated and never saved again: `verify` would rightly find them.

        Returns:
            What was removed, in words.
        """
        removed = []
        for step, found in list(examined(self._run)):
            if step in self.damaged and not isinstance(found, CommitRecord):
                for name in (RunDir.record(step), RunDir.checkpoint(step)):
                    self._run.remove(name)
                removed.append(f"removed the checkpoint of step {step}, which was truncated and not saved again")
        return removed

    def _moment(self, fault: Fault) -> bool:
        """Wait for the moment of a fault; False where the job has ended before."""
        job, noted = self._job, self._noted
        if fault.step is not None:
            step = fault.step
            begun = self._until(lambda: noted.highest >= step)
            if fault.kind is Kind.TRUNCATE:
                begun = begun and self._until(self._seldom(lambda: len(self._commits(2)) == 2))
            self._started = time.monotonic()
            if not begun:
                return False
        came = self._until(lambda: time.monotonic() - self._started >= fault.delay)
        if fault.kind in (Kind.TERM_RANK, Kind.KILL_RANK):
            return came and self._until(lambda: len(job.workers(fault.node)) > fault.process)
        return came and self._until(lambda: job.agent(fault.node) is not None)

    def _carry_out(self, outcome: Outcome, following: Fault | None) -> None:
        fault, noted, job = outcome.fault, self._noted, self._job
        durable = self._durable()
        noted.read()
        before = len(noted.of[0])
        pid = noted.of[0][-1].pid if before and runs(noted.of[0][-1].pid) else None
        outcome.step = noted.of[0][-1].step if pid is not None else None
        ended, starts, self._safe = len(job.endings), job.starts, None
        outcome.injected = True
        began = time.time()
        durable = self._do(outcome, durable)
        if following is None or following.step is not None:
            self._until(lambda: self._new(outcome, before, pid) is not None)
        elif fault.kind is not Kind.KILL_RANK:
            self._until(lambda: job.starts > starts or self._new(outcome, before, pid) is not None)
        new = self._new(outcome, before, pid)
        outcome.seconds = None if new is None else new.at - began
        self._started = time.monotonic()
        outcome.ended = [status for _, status in job.endings[ended:]]
        self._judge(outcome, before, pid, durable)

    def _do(self, outcome: Outcome, durable: int) -> int:
        """Do to the job what is planned.

        Returns:
            The step that must be durable whatever happens.
        """
        fault, job = outcome.fault, self._job
        agent = [pid for pid in [job.agent(fault.node)] if pid is not None]
        worker = job.workers(fault.node)[fault.process : fault.process + 1]
        if fault.kind in (Kind.TERM_AGENT, Kind.KILL_AGENT):
            job.replaced.add(fault.node)
        match fault.kind:
            case Kind.TERM_RANK:
                send(worker, SIGTERM)
            case Kind.KILL_RANK:
                send(worker, SIGKILL)
            case Kind.TERM_AGENT:
                send(agent, SIGTERM)
            case Kind.KILL_AGENT:
                send(agent, SIGKILL)
            case Kind.TERM_ALL:
                send(job.agents(), SIGTERM)
            case Kind.KILL_ALL:
                job.kill()
            case Kind.TRUNCATE:
                return self._truncate()
            case Kind.OUTAGE:
                self._outage(outcome, durable)
            case Kind.RESIZE:
                self._resize()
        return durable

    def _truncate(self) -> int:
        self._job.kill()
        newest, good = self._commits(2)
        self.damaged.append(newest.step)
        half = newest.bytes // 2
        if self._run.is_local:
            with Path(self._run.path, newest.name).open("r+b") as file:
                file.truncate(half)
        else:
            data = self._run.read(newest.name)
            assert data is not None
            self._run.write(newest.name, data[:half])
        return good.step

    def _outage(self, outcome: Outcome, durable: int) -> None:
        assert self._proxy is not None
        began, notes = time.monotonic(), len(self._noted.of[0])
        self._proxy.cut()
        try:
            self._until(lambda: time.monotonic() - began >= outcome.fault.seconds)
        finally:
            self._proxy.restore()
        if len(self._noted.of[0]) == notes and outcome.step is not None:
            outcome.problems.append(f"training stood still for the {outcome.fault.seconds:.1f} s of the outage")
        self._until(self._seldom(lambda: self._durable() > durable))

    def _resize(self) -> None:
        """Run on with one node less until something is committed there, and then with all again."""
        self._launch_with(self._job.nodes - 1)
        durable = self._durable()
        self._until(self._seldom(lambda: self._durable() > durable))
        self._launch_with(self._job.nodes + 1)
        notes = len(self._noted.of[0])
        self._until(lambda: len(self._noted.of[0]) > notes)

    def _launch_with(self, nodes: int) -> None:
        job, starts = self._job, self._job.starts
        job.nodes = nodes
        send(job.agents(), SIGTERM)
        self._until(lambda: job.starts > starts)

    def _judge(self, outcome: Outcome, before: int, pid: int | None, durable: int) -> None:
        """Compare what came after a fault with what must have."""
        kind, problems = outcome.fault.kind, outcome.problems
        own = [note for note in self._noted.of[0] if note.pid == pid]
        reached = own[-1].step if own else durable
        later = self._later(before, pid)
        if kind is Kind.OUTAGE:
            if outcome.ended or later:
                problems.append(f"the outage ended processes (agents: {outcome.ended or 'none'})")
        elif kind.asks and own:
            if not outcome.ended:
                problems.append("no agent ended")
            problems += [f"an agent ended with {each}" for each in outcome.ended if each != PREEMPTED]
            if self._safe is not None and self._safe < reached:
                problems.append(f"step {reached} was done, and step {self._safe} was the last durable one")
        if later and kind is not Kind.OUTAGE:
            outcome.resumed = later[0].step
            # Also what a fault before it has cost, after which no step was done.
            earlier = self._noted.of[0][: self._noted.of[0].index(later[0])]
            outcome.repeated = max(0, earlier[-1].step + 1 - outcome.resumed) if earlier else 0
            least = reached if kind.asks and own else durable
            if outcome.resumed <= least:
                problems.append(f"it went on with step {outcome.resumed}, though step {least} was safe")
            if own and outcome.resumed > reached + 1:
                problems.append(f"it went on with step {outcome.resumed}, though step {reached} was its last")

    def _later(self, before: int, pid: int | None) -> list[Note]:
        """What rank 0 has noted after a fault in another process than before."""
        return [note for note in self._noted.of[0][before:] if note.pid != pid]

    def _new(self, outcome: Outcome, before: int, pid: int | None) -> Note | None:
        """The first step after a fault that rank 0 had never done before."""
        notes = self._noted.of[0]
        if outcome.fault.kind is Kind.OUTAGE:
            return next(iter(notes[before:]), None)
        known = max((note.step for note in notes if note.pid == pid or note in notes[:before]), default=0)
        return next((note for note in self._later(before, pid) if note.step > known), None)

    def _until(self, so: Callable[[], bool]) -> bool:
        """Look after the job until something is so; False where the job has ended before."""
        while True:
            self._look()
            if self._job.done:
                return False
            if so():
                return True
            time.sleep(_LOOK)

    def _look(self) -> None:
        """Read what is new, and start again what has ended, as a launcher does.

        Raises:
            Finding: Nothing has moved for too long, or an agent ended as none may.
        """
        self._check()
        job = self._job
        due = job.due()
        seen = self._noted.read(), len(job.endings), job.starts
        if due and not self._again:
            raise Finding(f"an agent ended with {job.endings[-1][1]}, though nothing was done to it")
        if due:
            self._safe = self._durable() if self._safe is None else self._safe
            job.start_again(due)
        if seen != self._seen:
            self._moved, self._seen = time.monotonic(), seen
        elif time.monotonic() - self._moved > _STILL:
            raise Finding(f"no step and no end for {_STILL:.0f} s after step {self._noted.highest}")

    def _durable(self) -> int:
        return next((record.step for record in self._commits(1)), 0)

    def _commits(self, most: int) -> list[CommitRecord]:
        """The newest committed checkpoints."""
        # Not `committed`, which would warn of each damaged one each time.
        found = (record for _, record in examined(self._run) if isinstance(record, CommitRecord))
        return list(islice(found, most))

    @staticmethod
    def _seldom(so: Callable[[], bool]) -> Callable[[], bool]:
        """Something that asks a storage, which is not asked all the time."""
        asked = 0.0

        def now() -> bool:
            nonlocal asked
            if time.monotonic() - asked < _ASK_STORAGE:
                return False
            asked = time.monotonic()
            return so()

        return now
