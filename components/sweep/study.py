"""Optuna by ask and tell: it proposes values, and says which trials are worse than others halfway.

Its study lives in this process only, and is rebuilt from the records of the trials when a sweep is continued: there
is no database, so a sweep's folder may lie on any storage.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from components.sweep.folder import TrialRecord, TrialState
from components.sweep.space import SweepSpace, Value, ValueRange
from pipeline.errors import UserError, install_command

if TYPE_CHECKING:
    from optuna.trial import Trial

PRUNERS = ("none", "median", "hyperband")


class OptunaStudy:
    """A study of Optuna's whose trials are those of a sweep.

    Args:
        space: What is tried.
        mode: `min` or `max`.
        pruner: One of `PRUNERS`.
        parallel: Whether several trials run at once.

    Attributes:
        can_prune: Whether it ever stops a trial.

    Raises:
        UserError: Optuna is not installed here.
    """

    def __init__(self, space: SweepSpace, mode: str, pruner: str, parallel: bool) -> None:
        self._optuna = optuna = optuna_here()
        self._space, self._parallel = space, parallel
        self.can_prune = pruner != "none"
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        directions = optuna.study.StudyDirection
        direction = directions.MAXIMIZE if mode == "max" else directions.MINIMIZE
        # Hyperband's brackets depend on the name.
        self._study = optuna.create_study(
            study_name="sweep", sampler=self._sampler(1), pruner=_pruner(optuna, pruner), direction=direction
        )
        self._trials: dict[int, Trial] = {}
        self._reported: dict[int, int] = {}
        self._worse: set[int] = set()
        self._told: set[int] = set()
        self._distributions = {key: _distribution(optuna, each) for key, each in space.optuna.items()}

    def values(self, trial: int, records: Sequence[TrialRecord]) -> dict[str, Value]:
        """Return the values of a new trial.

        Args:
            trial: Its number.
            records: Of all trials before it, as they stand now.
        """
        self._learn(records)
        # One sampler for each trial: what it draws does not depend on how often the sweep was continued.
        self._study.sampler = self._sampler(trial)
        self._trials[trial] = self._study.ask(self._distributions)
        return dict(self._trials[trial].params)

    def prunes(self, trial: TrialRecord, records: Sequence[TrialRecord]) -> bool:
        """Return whether a trial that runs is to be stopped.

        Args:
            trial: With what it has reported.
            records: Of all trials.
        """
        self._learn(records)
        return trial.trial in self._worse

    def _learn(self, records: Sequence[TrialRecord]) -> None:
        """Tell the study what it does not know yet."""
        for record in records:
            if record.trial in self._told:
                continue
            if record.trial not in self._trials:
                self._trials[record.trial] = self._added(record)
            trial = self._trials[record.trial]
            self._report(record, trial)
            if record.ended:
                states = self._optuna.trial.TrialState
                failed = states.PRUNED if record.state is TrialState.PRUNED else states.FAIL
                finished = record.state is TrialState.FINISHED
                self._study.tell(trial, record.value if finished else None, None if finished else failed)
                self._told.add(record.trial)

    def _report(self, record: TrialRecord, trial: "Trial") -> None:
        """Report the validations that are new, one by one: a pruner remembers how far each trial has come."""
        known = self._reported.get(record.trial, 0)
        for step, value in enumerate(record.reported[known:], known + 1):
            if value is not None:
                trial.report(value, step)
                if trial.should_prune():
                    self._worse.add(record.trial)
        self._reported[record.trial] = len(record.reported)

    def _added(self, record: TrialRecord) -> "Trial":
        """Return a trial of the study for one that an earlier process has asked for."""
        kind = self._optuna.trial
        running = kind.create_trial(
            state=kind.TrialState.RUNNING, params=dict(record.values), distributions=self._distributions
        )
        self._study.add_trial(running)
        # The one way to a Trial that was not asked for here; Optuna has no public name for this number.
        found: Trial = kind.Trial(self._study, self._study.get_trials(deepcopy=False)[-1]._trial_id)
        return found

    def _sampler(self, trial: int) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `constant_liar` is said to be experimental
            seed = (self._space.seed * 1_000_003 + trial) % 2**32
            return self._optuna.samplers.TPESampler(seed=seed, constant_liar=self._parallel)


def optuna_here() -> Any:
    """Return Optuna.

    Raises:
        UserError: It is not installed here.
    """
    try:
        import optuna  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError(
            f"--optuna needs a package that is not installed here ({error}): {install_command('sweep')}"
        ) from error
    return optuna


def _pruner(optuna: Any, name: str) -> Any:
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner()
    return optuna.pruners.MedianPruner() if name == "median" else optuna.pruners.NopPruner()


def _distribution(optuna: Any, of: ValueRange) -> Any:
    if of.kind == "choice":
        return optuna.distributions.CategoricalDistribution(of.of)
    kind = optuna.distributions.IntDistribution if of.kind.startswith("int") else optuna.distributions.FloatDistribution
    return kind(*of.of, log=of.logarithmic)
