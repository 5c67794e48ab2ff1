"""The training session: all that happens between two batches, in one plain object that knows no Lightning.

`EpochLoop` calls it before each batch, `SessionHooks` at the moments that Lightning gives to callbacks only. There it
polls the stop vote, asks the save policy what is due, captures the state, hands it to the saver, and restores once
after a resume. Saving anywhere else would leave half of a step out: its validation, hooks or learning rate schedules.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.checkpoint.commit import CommitRecord
from pipeline.checkpoint.saver import SaveFailed, Saver
from pipeline.checkpoint.serializable import plain
from pipeline.errors import LeaseLost, Preempted, UserError
from pipeline.process import patience
from pipeline.run.goodput import OTHER, SAVING, VALIDATING, WAITING, Goodput
from pipeline.run.run_dir import now
from pipeline.training.memory_checkpoints import MemoryCheckpoints, Uncommitted
from pipeline.training.monitored_metric import MonitoredMetric
from pipeline.training.save_policy import Boundary, SavePolicy
from pipeline.training.stop_vote import Due, StopVote
from pipeline.training.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from pipeline.training.state.run_state import RunState
    from pipeline.training.trainer_state import TrainerState

_HEARTBEAT = 2.0
"""Seconds after which ranks that wait for a save hear of rank 0."""


class TrainingSession:
    """One fit of a run, from its first boundary to its end.

    Args:
        state: Captures and restores what a trainer holds.
        vote: Decides for all ranks whether they stop.
        goodput: Counts where the time goes.
        policy: When a checkpoint is due.
        saver: Commits checkpoints; None: this attempt saves nothing.
        monitor: The logged metric that tells which checkpoint is best, None: the latest is.
        mode: Whether the least (`min`) or the greatest (`max`) value of it is best.
        resumed_step: The step that this attempt resumed from, if the run itself committed it.
        memory: Keeps states in the host memory of the nodes; None: nothing does.
        uncommitted: The state that this attempt resumes from, where it is in memory alone.
        telemetry: Measures; None: for nobody.
    """

    def __init__(
        self,
        state: "TrainerState",
        vote: StopVote,
        goodput: Goodput,
        policy: SavePolicy | None = None,
        saver: Saver | None = None,
        monitor: str | None = None,
        mode: str = "min",
        resumed_step: int | None = None,
        memory: MemoryCheckpoints | None = None,
        uncommitted: Uncommitted | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.state = state
        self.vote = vote
        self.goodput = goodput
        self.policy = policy or SavePolicy()
        self.saver = saver
        self.telemetry = telemetry or Telemetry(goodput)
        self.monitored = MonitoredMetric(state, monitor, mode)
        self.memory = memory if saver is not None else None
        self._uncommitted = uncommitted
        self._memory_due = False
        self._committed = resumed_step
        self._before = 0
        """Optimizer steps that were done at the last boundary."""
        self._saved_at = time.monotonic()
        self._validated = self._previewed = False
        """Whether all that a checkpoint would hold was found to be such that it loads again."""
        self._value_pending = False
        """Whether the commit record of this step lacks the value of the validation that has ended now."""
        self._standing: dict[str, Any] | None = None
        """The state of this rank before the validation that is under way."""
        self._common_batches = 0
        """Batches left of this validation that all ranks have: only within those they can stop."""

    def begin(self, step: int) -> None:
        """Training begins, with so many optimizer steps done. It does not wait for a storage, as its start does.

        Raises:
            UserError: The model's hyperparameters would not load again; all of them by name.
        """
        if self.saver is not None:
            plain({"hyper_parameters": self.state.hyper_parameters})
        self._previewed = step > 0  # what a resumed checkpoint held was found to load again
        self._before, self._saved_at = step, time.monotonic()
        if self.memory is not None:
            self.memory.begin(self.state.model)
        if self._uncommitted is not None and self._uncommitted.record.reason:
            self._commit_resumed([])
        patience.end()

    def at_boundary(self, at: Boundary) -> None:
        """Save what is due, stop if all ranks do, else restore what is left to restore.

        Raises:
            Preempted: All ranks stop here; what it says is durable.
            SaveFailed: The storage has failed for longer than its budget.
            UserError: Something that a checkpoint would hold would not load again; all of it by name.
        """
        self._standing = None  # a validation that was due may have had nothing to run on
        self.goodput.step = at.step
        if self.saver is not None and not self._previewed and at.step > 0:
            self._previewed = True
            plain(self.state.preview())
        vote = self.vote.poll(lambda: self._due(at.step))
        stop = vote.stop and not at.accumulating
        if stop and self.state.is_restoring:
            raise Preempted(f"preempted at step {at.step}, before a new one: {self._commit_resumed(['preemption'])}")
        if self.telemetry.at_boundary(at.step, at.epoch, ends=vote.due.telemetry and not vote.stop):
            self.vote.done(Due(telemetry=True))
        self._memory_due |= vote.due.memory
        self._save(at, minutes=vote.due.minutes, stop=stop)
        self._require_monitor(at)
        if self._memory_due and at.step > 0 and not (stop or at.accumulating or self.state.is_restoring):
            self._keep(at)
        if stop:
            unsaved = ", which is not saved: this fit saves no checkpoints" if self.saver is None else ""
            raise Preempted(f"preempted at step {at.step}{unsaved}")
        self.state.restore()

    def before_batch(self) -> None:
        """The loop asks for the next batch."""
        self.goodput.enter(WAITING)
        self.telemetry.clock.waits()

    def on_batch_end(self) -> None:
        """A batch has been trained on."""
        self.telemetry.after_batch()
        self.vote.preemption.batch_ended()
        self.state.after_batch()

    def before_validation(self) -> None:
        """Remember where this rank stands before the validation that follows a batch."""
        self.state.resume_epoch()
        self.state.restore()
        self._standing = self.state.of_rank()

    def on_validation_start(self, batches: float) -> None:
        """A validation begins; the ranks may have different numbers of batches."""
        self.goodput.enter(VALIDATING)
        self._common_batches = self.vote.least(batches)
        self.vote.restart()

    def on_validation_batch(self, at: Callable[[], Boundary | None]) -> None:
        """Stop within a validation if all ranks do: it comes first when training resumes.

        Args:
            at: Where training stands; None where nothing would resume after this validation, or a step is half done.

        Raises:
            Preempted: The step that the validation follows is durable.
        """
        self._common_batches -= 1
        if self._common_batches < 0 or not self.vote.poll().stop or (boundary := at()) is None:
            return
        self._save(boundary, stop=True)
        raise Preempted(f"preempted in the validation after step {boundary.step}")

    def on_validation_end(self) -> None:
        """A validation has ended; training continues."""
        self._standing = None
        self.goodput.enter(OTHER)
        self.vote.restart()

    def on_validation_logged(self, step: int) -> None:
        """All that a validation logs is known by now."""
        self._validated = True
        self.monitored.validated()
        # A step that is committed already was saved before its validation, which an earlier attempt had left.
        self._value_pending = step == self._committed

    def at_end(self, at: Boundary) -> None:
        """Save the end of training, and wait until it is durable.

        Raises:
            SaveFailed: The storage has failed for longer than its budget.
        """
        self._standing = None
        self._save(at)
        self._require_monitor(at)
        self._finish()  # also where the last step was saved before: it may still be under way

    def on_exception(self, error: BaseException) -> None:
        """Let the save under way come to its end: it is good."""
        if self.saver is not None and not isinstance(error, SaveFailed):
            with suppress(SaveFailed, LeaseLost), self.goodput.during(SAVING):
                self.saver.finish()
            self.goodput.behind = self.saver.figures.get("checkpoint/behind_seconds")

    def _due(self, step: int) -> Due:
        """Return what is due by the clock of rank 0; nothing on the others."""
        if not self.state.is_global_zero:
            return Due()
        every = None if step == self._committed else self.policy.every_minutes
        minutes = every is not None and time.monotonic() - self._saved_at >= 60 * every
        return Due(minutes, self.memory is not None and self.memory.due, self.telemetry.due)

    def _save(self, at: Boundary, *, minutes: bool = False, stop: bool = False) -> None:
        """Save a step if that is due, and wait until it is durable if training stops here.

        Raises:
            UserError: Training has gone back behind a step that is committed.
        """
        if self._committed is not None and at.step < self._committed:
            raise UserError(
                f"training went back from step {self._committed}, which is committed and never written again, to step "
                f"{at.step}: something restored another state during training. Leave the callback out that does so, or "
                "have it act only where a run begins (trainer.ckpt_path is None)"
            )
        reasons = self.policy.due(at, self._before, minutes=minutes, validated=self._validated, stop=stop)
        self._before, self._validated = at.step, False
        if self.saver is not None and (reasons or self._value_pending):
            with self.goodput.during(SAVING):
                if at.step == self._committed:
                    self._amend(self.saver, at, reasons)
                else:
                    self._capture(self.saver, at, reasons, wait=stop or at.kind == "end")
        if stop:
            self._finish()

    def _capture(self, saver: Saver, at: Boundary, reasons: list[str], wait: bool) -> None:
        """Hand a checkpoint of this step to the saver, which makes it durable behind training.

        Args:
            saver: Commits it.
            at: Where training stands.
            reasons: Why it is due.
            wait: Whether it must not be skipped, however long the storage is away: it is this attempt's last.
        """
        self._wait(saver, or_failing=not wait)
        began = time.perf_counter()
        checkpoint, run_state = self.state.capture(at, self._standing)
        taken, record = False, self._record(at, run_state, reasons)
        if record is not None:
            checkpoint = plain(checkpoint)
            taken = saver.save(checkpoint, record)
            self._report(saver, at.step)
        # All ranks save together, so all must know of a save that was skipped.
        if self.state.broadcast(taken):
            self._committed = at.step
            self.goodput.saved(time.perf_counter() - began)
            self._saved_at = time.monotonic()
            self.vote.done(Due(minutes=True))
        if self.memory is not None and self.state.broadcast(self.memory.due_with_save(time.perf_counter() - began)):
            self.memory.keep_saved(self.state.model, checkpoint, record)
            self._kept()

    def _keep(self, at: Boundary) -> None:
        """Keep the state of this boundary in memory."""
        assert self.memory is not None

        def capture() -> tuple[dict[str, Any], CommitRecord | None]:
            checkpoint, run_state = self.state.capture(at)
            return plain(checkpoint), self._record(at, run_state, [])

        with self.goodput.during(SAVING):
            self.memory.keep(self.state.model, capture)
        self._kept()

    def _kept(self) -> None:
        self._memory_due = False
        self.vote.done(Due(memory=True))

    def _commit_resumed(self, reasons: list[str]) -> str:
        """Commit the state that this attempt resumes from, which was due before or is now; return what is saved."""
        known, self._uncommitted = self._uncommitted, None
        if known is None or self.saver is None:
            return "nothing to save"
        if self.state.is_global_zero:
            record = replace(known.record, reason=[*known.record.reason, *reasons])
            self.saver.save(known.load(), record)
        self._committed = known.record.step
        if reasons:
            self._finish()
        return "what was resumed from memory is saved"

    def _record(self, at: Boundary, run_state: "RunState", reasons: list[str]) -> CommitRecord | None:
        """Return what rank 0 says of a state; None on the other ranks."""
        if not self.state.is_global_zero:
            return None
        return CommitRecord(
            step=at.step,
            epoch=at.epoch,
            position=run_state.position,
            bytes=0,
            sha256="",
            monitor=self.monitored.value if self._standing is None else None,  # in a validation it is another step's
            world_size=self.state.world_size,
            created=now(),
            reason=reasons,
            ended=self.state.ended(at),
        )

    def _require_monitor(self, at: Boundary) -> None:
        """Refuse a monitored metric that the model does not log, on every rank, once what is saved is durable."""
        if self.saver is not None and (missing := self.monitored.missing(at, self._committed)) is not None:
            self._finish()
            raise UserError(missing)

    def _amend(self, saver: Saver, at: Boundary, reasons: list[str]) -> None:
        """Write into the record of a step what is known only now: the value of its validation, or the end."""
        ends, self._value_pending, pending = "end" in reasons, False, self._value_pending
        if not (pending or ends):
            return
        self._wait(saver)  # the step may still be under way
        if self.state.is_global_zero:
            monitor, ended = self.monitored.value, self.state.ended(at)

            def change(record: CommitRecord) -> CommitRecord:
                return replace(
                    record,
                    monitor=monitor if pending else record.monitor,
                    reason=[*record.reason, *(["end"] if ends and "end" not in record.reason else [])],
                    ended=ended if ends else record.ended,
                )

            saver.amend(at.step, change)
        self._wait(saver)

    def _finish(self) -> None:
        """Wait, all ranks together, until the save under way is durable."""
        if self.saver is not None:
            with self.goodput.during(SAVING):
                self._wait(self.saver)
            self._report(self.saver, self._before)

    def _wait(self, saver: Saver, *, or_failing: bool = False) -> None:
        """Wait for the saver of rank 0, see `Saver.finish`, which the other ranks hear of meanwhile."""
        while not self.state.broadcast(
            not self.state.is_global_zero or saver.finish(_HEARTBEAT, or_failing=or_failing)
        ):
            self.vote.preemption.heartbeat()

    def _report(self, saver: Saver, step: int) -> None:
        """Log what saving costs, and whether the storage fails."""
        self.goodput.behind = saver.figures.get("checkpoint/behind_seconds")
        self.state.log(saver.figures, step)
