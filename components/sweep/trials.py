"""Bring the trials of a sweep to their ends: begin, follow, prune, and begin again what was cut.

What a trial has come to is read from its run directory, on every launcher. A trial that a killed sweep has left running
is found by its name where the launcher knows names, else by the lease of its run, and waited for.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torchx.specs import AppDef

from components.stages import echo
from components.sweep.folder import SweepFolder, TrialRecord, TrialState
from components.sweep.outcomes import reported, summary_of, value_of
from components.sweep.pool import EndedStage, StagePool
from components.sweep.space import SweepSpace, Value
from components.sweep.study import OptunaStudy
from pipeline.checkpoint.run_summary import RunCondition, RunSummary
from pipeline.errors import DONE, INTERRUPTED, PREEMPTED, USER_MUST_CHANGE, UserError

_WAIT = 0.5
"""Seconds between two looks at what has ended."""
_LOOK = 3.0
"""Seconds between two looks at the records of trials that run."""


@dataclass(frozen=True)
class TrialPlan:
    """How trials run.

    Attributes:
        space: What is tried.
        parallel: How many at once.
        app: Returns the training of a trial, which has one of `parallel` places of its own.
        named: Whether the launcher finds a run by its name.
        study: Asks for values and prunes; None without Optuna.
    """

    space: SweepSpace
    parallel: int
    app: Callable[[TrialRecord, int], AppDef]
    named: bool
    study: OptunaStudy | None = None


class SweepTrials:
    """The trials of a sweep.

    Args:
        folder: Where they are, with its lease taken.
        plan: How they run.
        pool: Runs them.
        records: Those that were begun before.
    """

    def __init__(self, folder: SweepFolder, plan: TrialPlan, pool: StagePool, records: list[TrialRecord]) -> None:
        self.records = records
        self.cancelled: list[TrialRecord] = []
        self._folder, self._plan, self._pool = folder, plan, pool
        self._waiting = deque(each for each in records if not each.ended)
        self._places: dict[str, int] = {}
        self._active: dict[str, TrialRecord] = {}
        self._watched: dict[str, TrialRecord] = {}
        self._found: set[str] = set()
        self._pruning: set[str] = set()
        self._looked = time.monotonic()

    def run(self) -> None:
        """Run all trials to their ends.

        Raises:
            UserError: The user must change something that all trials have in common.
            LeaseLost: Another process runs the sweep.
            StorageAway: The storage does not answer.
        """
        while self._fill():
            ended = self._pool.next(_WAIT)
            if ended is not None:
                self._conclude(ended)
            if time.monotonic() - self._looked >= _LOOK:
                self._watch()
                self._prune()
                self._looked = time.monotonic()

    def _fill(self) -> bool:
        """Begin trials while there is place; return whether there is one to wait for."""
        while len(self._active) + len(self._watched) < self._plan.parallel:
            trial = self._next()
            if trial is None:
                break
            self._begin(trial)
        return bool(self._active or self._watched)

    def _next(self) -> TrialRecord | None:
        if self._waiting:
            return self._waiting.popleft()
        known = {each.trial for each in self.records}
        number = next((each for each in range(1, self._plan.space.trials + 1) if each not in known), None)
        if number is None:
            return None
        trial = TrialRecord(number, self._values(number))
        self.records.append(trial)
        self.records.sort(key=lambda each: each.trial)
        return trial

    def _values(self, number: int) -> dict[str, Value]:
        study = self._plan.study
        return self._plan.space.values(number) if study is None else study.values(number, self.records)

    def _begin(self, trial: TrialRecord) -> None:
        """Begin a trial, unless it has been finished or is running already."""
        known = summary_of(self._folder, trial) if trial.starts else None
        again = self._plan.named and trial.starts > 0 and trial.status is None
        if known is not None and known.state is RunCondition.FINISHED:
            self._finish(trial, known)
            return
        if known is not None and known.state is RunCondition.RUNNING and not again:
            self._follow(trial)
            return
        if again:
            self._found.add(trial.name)
        else:
            trial.starts += 1
        trial.status = trial.reason = None
        self._folder.write(trial)
        place = min(set(range(self._plan.parallel)) - set(self._places.values()))
        self._active[trial.name], self._places[trial.name] = trial, place
        shown = ", ".join(f"{key}={value}" for key, value in trial.values.items())
        self._say(trial, f"{'started' if trial.starts == 1 else 'started again'}: {shown}")
        name = f"{self._folder.name}-{trial.name}-{trial.starts}" if self._plan.named else ""
        self._pool.start(trial.name, self._plan.app(trial, place), self._folder.url(trial), name)

    def _follow(self, trial: TrialRecord) -> None:
        """Wait for a trial that runs without this process."""
        self._watched[trial.name] = trial
        self._say(trial, "is running already: waiting for its end")

    def _conclude(self, ended: EndedStage) -> None:
        """Decide what becomes of a trial whose training has ended."""
        trial = self._active.pop(ended.key)
        del self._places[ended.key]
        pruned, found = ended.key in self._pruning, ended.key in self._found
        self._pruning.discard(ended.key)
        self._found.discard(ended.key)
        known = summary_of(self._folder, trial)
        if ended.status == DONE and known is not None:
            self._finish(trial, known)
        elif pruned:
            self._stop(trial, ended.status)
        elif ended.status == USER_MUST_CHANGE and known is not None and known.state is RunCondition.RUNNING:
            self._follow(trial)
        elif ended.status == PREEMPTED or found:  # how one ended that was cut with an earlier sweep says little
            self._say(trial, ended.how)
            trial.status = ended.status
            self._folder.write(trial)
            self._waiting.append(trial)
        elif ended.status == INTERRUPTED:
            trial.status, trial.reason = INTERRUPTED, ended.how
            self._folder.write(trial)
            self.cancelled.append(trial)
            self._say(trial, f"{ended.how}; the same sweep begins it again", error=True)
        else:
            self._fail(trial, ended, known)

    def _finish(self, trial: TrialRecord, known: RunSummary) -> None:
        """Keep what a trial has come to that trained to its end."""
        metric = self._folder.metric.name
        trial.status, trial.value = DONE, value_of(known, metric)
        if trial.value is None:
            values, names = reported(self._folder, trial, metric)
            if not values and not any(each.value is not None for each in self.records):
                raise UserError(
                    f"metric={metric!r}: trial {trial.name} is done and has never logged it at a checkpoint. It "
                    f"logged {', '.join(names) or 'nothing for TensorBoard'}: name another --metric, and another "
                    "--run_dir for that sweep"
                )
            trial.reason = f"{metric} was {'never a number' if values else 'never logged'} at a checkpoint"
        elif self._plan.study is not None and self._plan.study.can_prune:
            trial.reported = reported(self._folder, trial, metric)[0]
        trial.state = TrialState.FAILED if trial.value is None else TrialState.FINISHED
        self._folder.write(trial)
        self._say(trial, trial.reason or f"finished: {metric} {trial.value:.6g}{self._progress()}", trial.value is None)

    def _stop(self, trial: TrialRecord, status: int) -> None:
        """Keep that a trial was pruned."""
        values = [each for each in trial.reported if each is not None]
        trial.state, trial.status, trial.value = TrialState.PRUNED, status, values[-1] if values else None
        at = len(trial.reported)
        trial.reason = f"pruned after {at} validation{'s' * (at > 1)}: others were better there"
        self._folder.write(trial)
        self._say(trial, f"{trial.reason}{self._progress()}")

    def _fail(self, trial: TrialRecord, ended: EndedStage, known: RunSummary | None) -> None:
        """Keep that a trial has failed.

        Raises:
            UserError: All trials would, as far as can be told.
        """
        # A start that is refused records nothing, and an older record may have the same status.
        told = known.reason if known is not None and known.status == ended.status else None
        given = (ended.error, told) if ended.status == USER_MUST_CHANGE else (told, ended.error)
        trial.status, trial.reason = ended.status, next(filter(None, given), ended.how)
        if ended.status == USER_MUST_CHANGE and (not ended.submitted or self._is_shared(trial)):
            self._folder.write(trial)  # as not ended: it is begun again once that is changed
            raise UserError(f"trial {trial.name}: {trial.reason}", "every trial would fail so: the sweep ends here")
        trial.state = TrialState.FAILED
        self._folder.write(trial)
        self._say(trial, f"failed with status {trial.status}: {trial.reason}{self._progress()}", error=True)

    def _is_shared(self, trial: TrialRecord) -> bool:
        """Return whether the user's mistake of one trial is that of all: none has trained, and another has it."""
        if any(each.value is not None for each in self.records):
            return False
        same = [each for each in self._failed() if _without_name(each) == _without_name(trial)]
        return bool(same) or self._plan.space.trials == 1

    def _failed(self) -> Iterator[TrialRecord]:
        return (each for each in self.records if each.state is TrialState.FAILED)

    def _watch(self) -> None:
        """Look at the trials that run without this process."""
        for name, trial in list(self._watched.items()):
            known = summary_of(self._folder, trial)
            if known is not None and known.state is RunCondition.RUNNING:
                continue
            del self._watched[name]
            if known is not None and known.state is RunCondition.FINISHED:
                self._finish(trial, known)
            else:
                trial.status = None if known is None else known.status
                self._waiting.appendleft(trial)

    def _prune(self) -> None:
        """Stop the trials that are worse than others were at the same validation."""
        study = self._plan.study
        if study is None or not study.can_prune:
            return
        for name, trial in self._active.items():
            values, _ = reported(self._folder, trial, self._folder.metric.name)
            if name in self._pruning or values == trial.reported or not values:
                continue
            trial.reported = values
            self._folder.write(trial)
            if study.prunes(trial, self.records):
                self._pruning.add(name)
                self._pool.cancel(name)

    def _progress(self) -> str:
        return f" ({sum(each.ended for each in self.records)} of {self._plan.space.trials})"

    def _say(self, trial: TrialRecord, text: str, error: bool = False) -> None:
        echo(f"{trial.name}: {text}", sys.stderr if error else None)


def _without_name(trial: TrialRecord) -> str:
    return (trial.reason or "").replace(trial.name, "")
