"""What an agent does from one rendezvous to the next: watch its workers and the other nodes, and act."""

import time
from dataclasses import dataclass, field, replace
from signal import SIGTERM

from pipeline.agent.event_log import EventLog, close_job, leave_job
from pipeline.agent.policy import (
    Event,
    EventType,
    FailureKind,
    JobEnd,
    RoundView,
    decide,
    first_verdict,
    is_consequence,
    membership_change,
    nodes_with,
    root_failure,
    stopping,
    worker_failure,
)
from pipeline.agent.rendezvous import RoundHandler
from pipeline.agent.signals import Signals
from pipeline.agent.standby import Standby
from pipeline.agent.workers import HURRY, WorkerExit, Workers
from pipeline.errors import CRASH, DONE, INTERRUPTED, PREEMPTED, USER_MUST_CHANGE
from pipeline.process.cgroup import MemoryCgroup
from pipeline.process.output import print_line

PEERS_TIMEOUT = 300.0
"""Seconds that a node whose workers are done waits for those of the others."""
LINGER = 10.0
"""Seconds that the host of the store stays for the others to read the verdict."""
LEAVING_LINGER = 3.0
"""The same if the host was asked to stop, after its workers have ended."""
LATECOMERS = 2.5
"""Seconds in which a node that waits polls the rendezvous at least once."""
_FLUSH = 2.0
_MOST_PATIENCE = 4
"""How many last calls nodes that join wait for further ones at most."""
_RERUN = "re-running rendezvous"


@dataclass
class NodeState:
    """What a node keeps from one round to the next.

    Attributes:
        host: This node's host name.
        signals: Of this process.
        grace: Seconds that workers have after SIGTERM.
        interval: Seconds between two looks at the workers.
        max_restarts: Restarts at most.
        standby: From which the workers are forked.
        restarts_used: Restarts so far.
        status: The exit status if the next rendezvous fails.
        memory: Of this container.
        preflight_passed: Whether this node has passed a preflight.
    """

    host: str
    signals: Signals
    grace: float
    interval: float
    max_restarts: int
    standby: Standby
    restarts_used: int = 0
    status: int = CRASH
    memory: MemoryCgroup = field(default_factory=MemoryCgroup)
    preflight_passed: bool = False


@dataclass
class Supervisor:
    """One round on this node, from the start of its workers to their end.

    Attributes:
        state: Of this node.
        handler: Of the rendezvous.
        workers: Already started.
        log: Of the round's events, already started.
        preflight: Whether the workers only check the nodes, so that a success re-runs the rendezvous.
    """

    state: NodeState
    handler: RoundHandler
    workers: Workers
    log: EventLog
    preflight: bool = False
    _failed: list[Event] = field(default_factory=list)
    _tracebacks: dict[int, str] = field(default_factory=dict)
    _reported: set[EventType] = field(default_factory=set)
    _ending_since: float | None = None
    _exited_at: float | None = None
    _waiting: tuple[int, float, float] = (0, 0.0, 0.0)
    """How many nodes wait to be admitted, when the first one of them came, and the last one."""

    def __post_init__(self) -> None:
        self._me = self.handler.node
        self._nodes = self.log.alive

    def run(self) -> JobEnd | None:
        """Watch until the round is over, and end its workers.

        Returns:
            How this agent exits; None if the rendezvous is to be re-run.
        """
        end = self._watch()
        self.log.stop()
        return end

    def _watch(self) -> JobEnd | None:
        while True:
            time.sleep(self.state.interval)
            self.state.standby.tend()
            self._poll_workers()
            if self.state.signals.received:
                return self._stop()
            verdict = first_verdict(self.log.events)
            if verdict is not None:
                return self._follow(verdict)
            if self.log.lost:
                return self._store_lost()
            if self._exited_at is not None and time.monotonic() - self._exited_at > PEERS_TIMEOUT:
                # A passed preflight is not a finished training.
                status = CRASH if self.preflight else DONE
                return JobEnd(status, f"workers of other nodes still run {PEERS_TIMEOUT:.0f} s after those of this one")
            self._react()

    @property
    def _events(self) -> tuple[Event, ...]:
        """The log, and failures of this node that are not in it yet."""
        events = self.log.events
        return events + tuple(event for event in self._failed if event not in events)

    @property
    def _lost(self) -> set[str]:
        return set(self._nodes) - self.log.alive - nodes_with(EventType.LEFT, self.log.events) - {self._me}

    def _report(self, type_: EventType, status: int = DONE, reason: str = "") -> None:
        """Append an event, once in a round."""
        if type_ not in self._reported:
            self._reported.add(type_)
            self.log.append(Event(self._me, type_, status, reason=reason))

    def _poll_workers(self) -> None:
        """Report how workers have ended."""
        asked = self.workers.signalled
        for end in self.workers.poll():
            if end.unsaved:
                self._report(EventType.UNSAVED)
            if end.crashed and (not asked or end.code == USER_MUST_CHANGE):
                self._report_failure(end)
            elif end.code == PREEMPTED and not asked and not self._failed:
                self._report(EventType.SAVED)
        if not self.workers.running and not self._failed:
            self._exited_at = self._exited_at or time.monotonic()
            self._report(EventType.EXITED, DONE if all(end.code == DONE for end in self.workers.ended) else PREEMPTED)

    def _report_failure(self, end: WorkerExit) -> None:
        event = worker_failure(self._me, self.state.host, end.rank, end.code, end.report)
        # The rank itself, or one of its loader workers.
        if killed := self.state.memory.new_kills():
            event = replace(event, reason=f"{event.reason}, {killed}")
        if end.report:
            self._tracebacks[end.rank] = end.report.traceback
        self._failed.append(event)
        self.log.append(event)

    def _react(self) -> None:
        """Do what the events ask for, and decide when it is time."""
        events, lost, now = self._events, self._lost, time.monotonic()
        if nodes_with(EventType.LEAVING, events):
            self._report(EventType.ACKNOWLEDGED)
        stops = stopping(events) or EventType.SAVED in self._reported
        if root_failure(events) is None and not lost and not stops:
            if self.workers.running and self._joining_nodes_are_complete(now):
                self._report(EventType.JOINING, reason="a node joins")
            self._decide(events, lost, 0.0)
            return
        self._ending_since = self._ending_since or now
        seconds = now - self._ending_since
        if self.workers.running:
            self._end_workers(events, lost, stops, seconds)
        if not self.workers.running:
            self._decide(events, lost, seconds)

    def _joining_nodes_are_complete(self, now: float) -> bool:
        """Return whether nodes wait, and no more are likely to come soon: admitting some costs all a restart."""
        waiting, patience = self.log.waiting, self.handler.last_call
        if waiting != self._waiting[0]:
            self._waiting = waiting, (self._waiting[1] if waiting and self._waiting[0] else now), now
        _, first, last = self._waiting
        if not waiting:
            return False
        full = len(self._nodes) + waiting >= self.handler.settings.max_nodes
        return full or now - last >= patience or now - first >= _MOST_PATIENCE * patience

    def _end_workers(self, events: tuple[Event, ...], lost: set[str], stops: bool, seconds: float) -> None:
        """Stop the workers unless they end by themselves, because all ranks have agreed to save."""
        state, root = self.state, root_failure(events)
        # Who leaves before its workers are started, or before their first step, takes none of the others along.
        never_started = nodes_with(EventType.LEFT, events) - nodes_with(EventType.EXITED, events)
        alone = never_started or nodes_with(EventType.UNSAVED, events)
        if alone or ((root or lost) and not (stops and (root is None or is_consequence(root, events)))):
            self.workers.stop()
        elif not self.workers.signalled and seconds > HURRY and nodes_with(EventType.SAVED, events):
            # Ranks that agree to save exit together: those that still run were not asked, and wait for a lost peer.
            self.workers.stop()
        elif seconds > state.grace:
            self.workers.stop(HURRY)
        elif not self.workers.signalled and not nodes_with(EventType.LEAVING, events):
            # One agent asks its workers to save for the node that joins, and they take all ranks along: a signal from
            # each agent would be a second one to workers that are about to save.
            joining = next((event.node for event in events if event.type is EventType.JOINING), None)
            if joining == self._me:
                self.workers.send(SIGTERM)

    def _decide(self, events: tuple[Event, ...], lost: set[str], seconds: float) -> None:
        if self.workers.running or EventType.VERDICT in self._reported:
            return
        state = self.state
        view = RoundView(self._me, self._nodes, lost, seconds, state.restarts_used, state.max_restarts)
        verdict = decide(events, view)
        if verdict is not None:
            self._reported.add(EventType.VERDICT)
            self.log.append(replace(verdict, restart=True) if self.preflight and verdict.status == DONE else verdict)

    def _follow(self, verdict: Event) -> JobEnd | None:
        """End the round as all nodes do."""
        state = self.state
        if not verdict.restart:
            self._report(EventType.READ)
            self.log.flush(_FLUSH)
        if verdict.status not in (DONE, PREEMPTED):
            self.workers.stop()
        else:
            # Those that have agreed to stop end by themselves. Others wait for peers that are gone.
            self.workers.finish(ask_after=0.0 if nodes_with(EventType.UNSAVED, self._events) else HURRY)
        mine = verdict.about == self._me and verdict.kind is not FailureKind.LOST_PEER
        traceback = self._tracebacks.get(verdict.rank, "") if mine else ""
        if not verdict.restart:
            self._leave_finished_job(verdict.status)
            return JobEnd(verdict.status, verdict.reason, traceback)
        if verdict.status == DONE:
            state.preflight_passed = True
        else:
            used = max(state.restarts_used, verdict.restarts_used)
            self._log_restart(verdict.reason, traceback, used, verdict.status)
        return None

    def _log_restart(self, reason: str, traceback: str, restarts_used: int, status: int) -> None:
        """Report why the workers are restarted."""
        state = self.state
        counted = restarts_used > state.restarts_used
        why = f"{reason}: " + (f"restart {restarts_used} of {state.max_restarts}" if counted else _RERUN)
        print_line("\n".join(filter(None, (traceback.rstrip("\n"), why))), level="warning" if counted else "info")
        state.restarts_used, state.status = restarts_used, status

    def _leave_finished_job(self, status: int) -> None:
        """Leave once all nodes have read the verdict; only the store's host has to wait for that."""
        if self.handler.hosts_store:
            close_job(self.handler, status)
            start = time.monotonic()
            while (seconds := time.monotonic() - start) < LINGER:
                events = self.log.events
                unread = set(self._nodes) - nodes_with(EventType.READ, events) - self._lost - {self._me}
                latecomers = self.log.waiting + self.log.spares > 0
                if not unread - nodes_with(EventType.LEFT, events) and (not latecomers or seconds > LATECOMERS):
                    break
                time.sleep(0.02)
        self.handler.stop_heartbeats()

    def _store_lost(self) -> JobEnd | None:
        """The store's host is lost, and the common log with it: each node decides for itself."""
        state = self.state
        if (planned := membership_change(self._events)) is not None:
            self.workers.finish(ask_after=HURRY)
            self._log_restart(planned, "", state.restarts_used, PREEMPTED)
            return None
        # As after the loss of any other node, unless these workers have ended by themselves or are about to.
        crashed = self.workers.running and not stopping(self._events)
        status = CRASH if crashed else self._status_of_ended()
        self.workers.stop()
        self._poll_workers()
        root, own = root_failure(self._events), root_failure(self._failed)
        status, reason, traceback = own.status if own else status, "node 0 (rendezvous store) lost", ""
        if root is not None and root.kind is not FailureKind.LOST_PEER:
            reason = root.reason
            traceback = self._tracebacks.get(root.rank, "") if root == own else ""
        if root is not None and root.status == USER_MUST_CHANGE:
            return JobEnd(USER_MUST_CHANGE, reason, traceback)
        if state.restarts_used < state.max_restarts:
            self._log_restart(reason, traceback, state.restarts_used + 1, status)
            return None
        return JobEnd(status, reason, traceback)

    def _status_of_ended(self) -> int:
        """Return the exit status of a node none of whose workers has failed."""
        # A passed preflight is not a finished training.
        done = not self.workers.running and all(end.code == DONE for end in self.workers.ended) and not self.preflight
        return DONE if done else PREEMPTED

    def _stop(self) -> JobEnd:
        """This node received a signal: report it before any worker can exit because of it, forward it, and leave."""
        state, signals = self.state, self.state.signals
        crash = root_failure(self._failed)
        reason = f"node {state.host} received {signals.name()}"
        self._report(EventType.LEAVING, reason=reason)
        self.log.flush(_FLUSH)
        self.workers.send(signals.forwarded())
        grace = HURRY if len(signals.received) > 1 else state.grace
        self.workers.finish(max(0.0, grace - (time.monotonic() - signals.first)))
        if any(end.unsaved for end in self.workers.ended):
            self._report(EventType.UNSAVED)
        mistake = next((end for end in self.workers.ended if end.code == USER_MUST_CHANGE), None)
        if mistake is not None and not self._failed:
            self._report_failure(mistake)
        end = self._end_of_stopped(crash, mistake, reason)
        self._report(EventType.EXITED, end.status if end.status in (DONE, PREEMPTED) else PREEMPTED)
        self._report(EventType.LEFT)
        self.log.flush(_FLUSH)
        if self.handler.hosts_store:
            self._await_acknowledgement()
        leave_job(self.handler)
        return end

    def _await_acknowledgement(self) -> None:
        """Wait until all nodes know that this one leaves, and the store with it."""
        deadline = time.monotonic() + LEAVING_LINGER
        known = (EventType.ACKNOWLEDGED, EventType.LEAVING, EventType.READ)
        while time.monotonic() < deadline:
            informed = {event.node for event in self.log.events if event.type in known}
            if set(self._nodes) - {self._me} - self._lost <= informed:
                return
            time.sleep(0.02)

    def _end_of_stopped(self, crash: Event | None, mistake: WorkerExit | None, reason: str) -> JobEnd:
        """Return how an agent exits that received a signal."""
        if mistake is not None:
            return JobEnd(USER_MUST_CHANGE, f"rank {mistake.rank} on {self.state.host} exited with status 2")
        # A lost peer may have been asked to stop before this node was.
        if crash is not None and crash.kind is not FailureKind.LOST_PEER:
            return JobEnd(crash.status, crash.reason, self._tracebacks.get(crash.rank, ""))
        if self.state.signals.interrupted:
            return JobEnd(INTERRUPTED, reason)
        status = self._status_of_ended()
        return JobEnd(status, "" if status == DONE else reason)
