"""What an agent does from one meeting of the nodes to the next: watch its workers and the other nodes, and act."""

import time
from dataclasses import dataclass, field, replace

from pipeline.agent.event_log import News, close, go
from pipeline.agent.policy import (
    Kind,
    Round,
    Says,
    Word,
    decide,
    expected,
    failure,
    first_failure,
    nodes_that,
    parting,
    plan_of,
    verdict_of,
)
from pipeline.agent.rendezvous import Handler, say
from pipeline.agent.signals import Signals, passed_on
from pipeline.agent.workers import HURRY, Ended, Workers
from pipeline.errors import CRASH, DONE, INTERRUPTED, PREEMPTED, USER_MUST_CHANGE
from pipeline.process.cgroup import Memory

DONE_LIMIT = 300.0
"""Seconds that a node whose workers are done waits for those of the others."""
LINGER = 10.0
"""Seconds that the host of the store stays for the others to read how the job ended."""
LEAVING_LINGER = 3.0
"""The same for others to read that the host leaves, after the workers of which it has gone."""
LATE = 2.5
"""Seconds in which a node that waits looks at the rendezvous at least once."""
_FLUSH = 2.0


@dataclass(frozen=True)
class Ending:
    """How an agent ends.

    Attributes:
        status: Its exit status.
        how: In words; empty where there is nothing to say.
        traceback: Of the failure, where it happened on this node.
    """

    status: int
    how: str = ""
    traceback: str = ""


@dataclass
class Job:
    """What outlives a round.

    Attributes:
        host: This node's name for people.
        signals: Of this process.
        grace: Seconds that workers have after SIGTERM.
        interval: Seconds between two looks.
        allowed: Restarts at most.
        spent: Restarts so far.
        after: The status to end with if the nodes do not meet again.
        memory: What the kernel has killed here.
        looked_at: Whether this node has been through a preflight.
    """

    host: str
    signals: Signals
    grace: float
    interval: float
    allowed: int
    spent: int = 0
    after: int = CRASH
    memory: Memory = field(default_factory=Memory)
    looked_at: bool = False


@dataclass
class RoundOfWorkers:
    """One round on this node, from the start of its workers to their end.

    Attributes:
        job: What outlives it.
        handler: Of the rendezvous.
        workers: Have been started.
        news: Of the other nodes; has been started.
        preflight: Whether the workers only look at the nodes, so that the nodes meet again when all went well.
    """

    job: Job
    handler: Handler
    workers: Workers
    news: News
    preflight: bool = False
    _failed: list[Word] = field(default_factory=list)
    _tracebacks: dict[int, str] = field(default_factory=dict)
    _said: set[Says] = field(default_factory=set)
    _troubled: float | None = None
    _done: float | None = None

    def __post_init__(self) -> None:
        self._me = self.handler.node
        self._nodes = self.news.present

    def run(self) -> Ending | None:
        """Watch until the round is over, and end its workers.

        Returns:
            How this agent ends; None where the nodes meet again.
        """
        ending = self._watch()
        self.news.stop()
        return ending

    def _watch(self) -> Ending | None:
        while True:
            time.sleep(self.job.interval)
            self._look()
            if self.job.signals.received:
                return self._leave()
            verdict = verdict_of(self.news.words)
            if verdict is not None:
                return self._follow(verdict)
            if self.news.lost:
                return self._lost()
            if self._done is not None and time.monotonic() - self._done > DONE_LIMIT:
                # To have looked at the nodes is not to have trained.
                status = CRASH if self.preflight else DONE
                return Ending(status, f"other nodes have not ended within {DONE_LIMIT:.0f} s after this one")
            self._react()

    @property
    def _words(self) -> tuple[Word, ...]:
        """The log, and what this node has said that is not in there yet."""
        words = self.news.words
        return words + tuple(word for word in self._failed if word not in words)

    @property
    def _vanished(self) -> set[str]:
        words = self.news.words
        return set(self._nodes) - self.news.present - nodes_that(Says.GONE, words) - {self._me}

    def _say(self, says: Says, status: int = DONE, how: str = "") -> None:
        """Say something once in a round."""
        if says not in self._said:
            self._said.add(says)
            self.news.say(Word(self._me, says, status, how=how))

    def _look(self) -> None:
        """See how workers have ended, and say it."""
        asked = self.workers.signalled
        for end in self.workers.poll():
            if end.crashed and (not asked or end.code == USER_MUST_CHANGE):
                self._fail(end)
            elif end.code == PREEMPTED and not asked and not self._failed:
                self._say(Says.SAVED)
        if not self.workers.running and not self._failed:
            codes = {end.code for end in self.workers.ended}
            self._done = self._done or time.monotonic()
            self._say(Says.ENDED, DONE if codes == {DONE} else PREEMPTED)

    def _fail(self, end: Ended) -> None:
        word = failure(self._me, self.job.host, end.rank, end.code, end.report)
        # The rank itself, or a loader worker of it.
        if killed := self.job.memory.taken():
            word = replace(word, how=f"{word.how}, {killed}")
        if end.report:
            self._tracebacks[end.rank] = end.report.traceback
        self._failed.append(word)
        self.news.say(word)

    def _react(self) -> None:
        """Do what the state of things asks for, and decide when it is time."""
        words, vanished, now = self._words, self._vanished, time.monotonic()
        if nodes_that(Says.LEAVING, words):
            self._say(Says.HEARD)
        first, part = first_failure(words), parting(words) or Says.SAVED in self._said
        if first is None and not vanished and not part:
            if self.news.waiting and self.workers.running:
                self._say(Says.JOINING, how="a node joins")
            self._decide(words, vanished, 0.0)
            return
        self._troubled = self._troubled or now
        seconds = now - self._troubled
        if self.workers.running:
            # Who goes before it had workers takes nobody's along.
            never_came = nodes_that(Says.GONE, words) - nodes_that(Says.ENDED, words)
            if never_came or ((first or vanished) and not (part and (first is None or expected(first, words)))):
                self.workers.stop(self.job.grace, self.job.signals)
            elif not self.workers.signalled and seconds > HURRY and nodes_that(Says.SAVED, words):
                # Ranks that agreed end together: who still runs was not asked, and waits for one that is gone.
                self.workers.stop(self.job.grace, self.job.signals)
            elif seconds > self.job.grace:
                self.workers.stop(HURRY, self.job.signals)
            else:
                self._pass_on_joining(words)
        if not self.workers.running:
            self._decide(words, vanished, seconds)

    def _pass_on_joining(self, words: tuple[Word, ...]) -> None:
        """Where a node joins, one agent asks its workers to save, and they take those of all nodes with them.

        If each agent asked its own, theirs would be a second signal to workers that are about to save.
        """
        who = next((word.node for word in words if word.says is Says.JOINING), None)
        if who == self._me and not self.workers.signalled and not nodes_that(Says.LEAVING, words):
            self.workers.send(passed_on(0))

    def _decide(self, words: tuple[Word, ...], vanished: set[str], seconds: float) -> None:
        if self.workers.running or Says.VERDICT in self._said:
            return
        known = Round(self._me, self._nodes, vanished, seconds, self.job.spent, self.job.allowed)
        verdict = decide(words, known)
        if verdict is not None:
            self._said.add(Says.VERDICT)
            self.news.say(replace(verdict, again=True) if self.preflight and verdict.status == DONE else verdict)

    def _follow(self, verdict: Word) -> Ending | None:
        """End the round as all nodes do."""
        job = self.job
        crashed = verdict.status not in (DONE, PREEMPTED)
        if not verdict.again:
            self._say(Says.READ)
            self.news.flush(_FLUSH)
        if crashed:
            self.workers.stop(job.grace, job.signals)
        else:
            self.workers.let_end(job.grace, job.signals)
            self.workers.close()
        mine = verdict.about == self._me and verdict.kind is not Kind.LOST_PEER
        traceback = self._tracebacks.get(verdict.rank, "") if mine else ""
        if not verdict.again:
            self._part(verdict.status)
            return Ending(verdict.status, verdict.how, traceback)
        if verdict.status == DONE:
            job.looked_at = True
            return None
        self._again(verdict.how, traceback, max(job.spent, verdict.spent), verdict.status)
        return None

    def _again(self, how: str, traceback: str, spent: int, after: int) -> None:
        """Say why the workers are started anew."""
        job = self.job
        if traceback:
            say(traceback.rstrip("\n"))
        say(f"{how}: restart {spent} of {job.allowed}" if spent > job.spent else f"{how}: the nodes meet again")
        job.spent, job.after = spent, after

    def _part(self, status: int) -> None:
        """Leave when all have read how the job ended; only the store's host needs to wait for that."""
        if self.handler.hosts:
            close(self.handler, status)
            began = time.monotonic()
            while (seconds := time.monotonic() - began) < LINGER:
                left = set(self._nodes) - nodes_that(Says.READ, self.news.words) - self._vanished - {self._me}
                late = self.news.waiting + self.news.spares > 0
                if not left - nodes_that(Says.GONE, self.news.words) and (not late or seconds > LATE):
                    break
                time.sleep(0.02)
        self.handler.silence()

    def _lost(self) -> Ending | None:
        """The store is gone, and with it its host: without a common log each node decides for itself."""
        job, words = self.job, self._words
        if (plan := plan_of(words)) is not None:
            self.workers.let_end(job.grace, job.signals)
            self.workers.close()
            self._again(plan, "", job.spent, PREEMPTED)
            return None
        self.workers.stop(job.grace, job.signals)
        self._look()
        first = first_failure(self._words)
        own = first_failure(self._failed)
        status = own.status if own else PREEMPTED
        known = first is not None and first.kind is not Kind.LOST_PEER
        how = first.how if first is not None and known else "the node that the others meet at is gone"
        traceback = self._tracebacks.get(first.rank, "") if first is not None and known and first == own else ""
        if job.spent < job.allowed and (first is None or first.status != USER_MUST_CHANGE):
            self._again(how, traceback, job.spent + 1, status)
            return None
        return Ending(first.status if first and first.status == USER_MUST_CHANGE else status, how, traceback)

    def _leave(self) -> Ending:
        """This node was asked to end: say so before any worker can end of it, pass it on, and go."""
        job, signals = self.job, self.job.signals
        crash = first_failure(self._failed)
        how = f"node {job.host} was asked to end by {signals.name()}"
        self._say(Says.LEAVING, how=how)
        self.news.flush(_FLUSH)
        passed = list(signals.received)
        for number in dict.fromkeys(passed_on(number) for number in passed):
            self.workers.send(number)
        grace = HURRY if len(passed) > 1 else job.grace
        self.workers.let_end(max(0.0, grace - (time.monotonic() - signals.first)), signals)
        ended = list(self.workers.ended)
        for end in ended:
            if end.code == USER_MUST_CHANGE and not self._failed:
                self._fail(end)
        self.workers.close()
        ending = self._left(crash, ended, how)
        self._say(Says.ENDED, ending.status if ending.status in (DONE, PREEMPTED) else PREEMPTED)
        self._say(Says.GONE)
        self.news.flush(_FLUSH)
        if self.handler.hosts:
            heard = (Says.HEARD, Says.LEAVING, Says.READ)
            deadline = time.monotonic() + LEAVING_LINGER
            while time.monotonic() < deadline and not set(self._nodes) - {self._me} - self._vanished <= {
                word.node for word in self.news.words if word.says in heard
            }:
                time.sleep(0.02)
        go(self.handler)
        return ending

    def _left(self, crash: Word | None, ended: list[Ended], how: str) -> Ending:
        """The ending of an agent that was signalled."""
        mistake = next((end for end in ended if end.code == USER_MUST_CHANGE), None)
        if mistake is not None:
            return Ending(USER_MUST_CHANGE, f"rank {mistake.rank} on {self.job.host} ended with status 2")
        if crash is not None:
            return Ending(crash.status, crash.how, self._tracebacks.get(crash.rank, ""))
        if self.job.signals.interrupted:
            return Ending(INTERRUPTED, how)
        if all(end.code == DONE for end in ended) and not self.preflight:
            return Ending(DONE)
        return Ending(PREEMPTED, how)
