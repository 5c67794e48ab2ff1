"""Try many values of some keys, each in a run of its own, and compare the runs.

    python -m components.sweep --run_dir runs/lr --grid model.learning_rate=0.1,0.01,0.001
    python -m components.sweep --run_dir s3://bucket/lr --random model.learning_rate=log:1e-4:1e-1 --trials 20
    python -m components.sweep --run_dir runs/tpe --optuna model.learning_rate=log:1e-4:1e-1 --trials 30 --pruner median

The keys are flags of fit. A grid takes values between commas; --random and --optuna take uniform:LOW:HIGH,
log:LOW:HIGH, int:LOW:HIGH, intlog:LOW:HIGH or choice:a,b,c. Other flags of fit go after --. All flags of
components.launch that say where and how a training runs are taken, too. The same command continues a sweep that was
stopped or killed.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NoReturn

from torchx.runner import get_runner
from torchx.specs import AppDef

from components.command_line import (
    LaunchParser,
    add_parameters,
    add_scheduler_options,
    parameters_of,
    raise_at_signals,
    split_app_args,
)
from components.evaluate import evaluate
from components.launch import check_submitter, host_path, show_metrics, show_report, target_of
from components.stages import LaunchTarget, echo
from components.sweep import ranking
from components.sweep.evaluations import evaluate_trials, metrics_of
from components.sweep.folder import SweepFolder, TrialRecord, differences
from components.sweep.places import own_devices, places
from components.sweep.pool import StagePool
from components.sweep.preview import chosen_metric, preview
from components.sweep.space import SweepSpace, flags_of
from components.sweep.study import PRUNERS, OptunaStudy, optuna_here
from components.sweep.trials import SweepTrials, TrialPlan
from components.train import train
from pipeline.errors import CRASH, DONE, INTERRUPTED, PREEMPTED, USER_MUST_CHANGE, UserError, outcome
from pipeline.process.patience import AWAY_LIMIT, Patience, patience

_OWN = {"run_dir": "--run_dir", "config": "--config", "checkpoints.monitor": "--metric", "checkpoints.mode": "--mode"}
"""Flags of fit that all trials have from the sweep, and the sweep's flags for them."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM: this process is preempted, and no person has interrupted it."""


def main(arguments: Sequence[str]) -> int:
    """Run a sweep.

    Returns:
        The exit status: 0 when all trials have ended and one at least is finished; 2 the user must change something; 75
        stopped by SIGTERM, 130 by Ctrl-C or because a trial was cancelled: the same command continues it; else 1.
    """
    try:
        own, app_args = split_app_args(arguments)
        options, parameters = _parse(own)
        space = _space(options, app_args)
        with patience(Patience(AWAY_LIMIT)):
            return _sweep(_SweepRequest(options, parameters, space, app_args))
    except UserError as error:
        for problem in error.problems:
            echo(f"error: {problem}", sys.stderr)
        return USER_MUST_CHANGE
    except KeyboardInterrupt as error:
        status = PREEMPTED if isinstance(error, _Terminated) else INTERRUPTED
        echo("sweep: stopped; the same command continues it", sys.stderr)
        return status
    except Exception as error:
        ended = outcome(error)
        if not ended.expected:
            raise
        echo(f"sweep: {ended.reason}; the same command continues it", sys.stderr)
        return ended.status


@dataclass(frozen=True)
class _SweepRequest:
    """A command line.

    Attributes:
        options: The sweep's own.
        parameters: Of the components.
        space: What is tried.
        app_args: The flags of fit that all trials share.
    """

    options: argparse.Namespace
    parameters: dict[str, Any]
    space: SweepSpace
    app_args: list[str]

    @property
    def asked(self) -> dict[str, Any]:
        """What must be the same whenever this sweep is continued; where and how trials run may change."""
        names = ("metric", "mode", *(["pruner"] if self.space.optuna else []))
        own = {name: getattr(self.options, name) for name in names}
        return {**self.space.as_dict(), **own, "config": self.parameters["config"], "flags": self.app_args}

    def training(self, trial: TrialRecord, flags: Sequence[str], devices: dict[str, str]) -> AppDef:
        """Return the training of a trial."""
        own = {"run_dir": self._run_dir(trial), "env": {**devices, **(self.parameters["env"] or {})} or None}
        return train(
            *self.app_args, *flags_of(trial.values), *flags, **parameters_of(train, {**self.parameters, **own})
        )

    def evaluation(self, trial: TrialRecord) -> AppDef:
        """Return the evaluation of a trial."""
        own = {"run_dir": self._run_dir(trial), "gpu": min(self.parameters["gpu"], 1)}
        return evaluate(**parameters_of(evaluate, {**self.parameters, **own}))

    def _run_dir(self, trial: TrialRecord) -> str:
        return f"{str(self.parameters['run_dir']).rstrip('/')}/{trial.name}"


def _sweep(request: _SweepRequest) -> int:
    """Run a sweep to its end, and return the exit status."""
    options, parameters, space = request.options, request.parameters, request.space
    with ExitStack() as stack:
        target = target_of(options, stack.enter_context(get_runner()))
        raise_at_signals(_stop)
        check_submitter(target, parameters)
        parallel = places(target.scheduler, parameters, options.parallel)
        request.training(TrialRecord(1, {}), [], {})  # what is wrong with a node is said now
        request.evaluation(TrialRecord(1, {}))
        if space.optuna:
            optuna_here()
        if target.scheduler == "local_cwd" and not target.cfg.get("log_dir"):
            # TorchX makes a folder for each run, and removes the last one only.
            target.cfg["log_dir"] = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="sweep-", ignore_cleanup_errors=True)
            )
        folder = SweepFolder(host_path(parameters["run_dir"], parameters["mounts"]))
        stack.callback(folder.release)
        _open(folder, request, target)
        mode = folder.metric.mode
        study = OptunaStudy(space, mode, options.pruner, parallel > 1) if space.optuna else None
        records = folder.records(space.keys)
        for each in records if options.retry_failed else []:
            each.retry()

        def training(trial: TrialRecord, place: int) -> AppDef:
            return request.training(trial, folder.flags, own_devices(target.scheduler, parameters, place))

        named = "app_id" in [name for name, _ in target.runner.scheduler_run_opts(target.scheduler)]
        pool = StagePool(target)
        stack.callback(pool.close)
        trials = SweepTrials(folder, TrialPlan(space, parallel, training, named, study), pool, records)
        trials.run()
        first = ranking.best(trials.records, mode)
        chosen = {"none": [], "best": [first] if first else [], "all": ranking.finished(trials.records, mode)}
        failed = evaluate_trials(folder, pool, chosen[options.evaluate], request.evaluation, parallel)
        for stage in failed:
            echo(f"evaluation of {stage.key}: {stage.how}", sys.stderr)
        return _shown(folder, trials, first) or (failed[0].status if failed else DONE)


def _open(folder: SweepFolder, request: _SweepRequest, target: LaunchTarget) -> None:
    """Become the writer of a sweep, new or continued.

    Raises:
        UserError: Another sweep is in the folder, or a flag is wrong.
    """
    options, parameters, asked = request.options, request.parameters, request.asked
    before, metric, flags = folder.asked(), None, list[str]()
    if before is None:
        here = target.scheduler in ("local_cwd", "slurm") and target.cfg.get("container", "none") == "none"
        first = f"{folder.label}/{TrialRecord(1, {}).name}"
        found = preview(parameters["config"], first, request.app_args, request.space.extremes(), here)
        metric, flags = chosen_metric(found, options.metric, options.mode)
    folder.take()
    before = folder.asked()  # another process may have been faster
    if before is not None and (different := differences(before, asked)):
        raise UserError(
            f"run_dir={folder.label!r} holds another sweep; give another --run_dir, or ask for the same again",
            *different,
        )
    if before != asked:
        folder.begin(asked, metric or folder.metric, flags if metric else folder.flags)


def _shown(folder: SweepFolder, trials: SweepTrials, first: TrialRecord | None) -> int:
    """Print what the sweep has come to, and return the exit status."""
    for line in ranking.lines(folder, trials.records):
        echo(line)
    if first is not None:
        shown = ", ".join(f"{key}={ranking.shown(value)}" for key, value in first.values.items())
        echo(f"best {folder.metric.name}  {first.value:.6g}: {shown}")
        show_metrics(metrics_of(folder, first))
        echo(f"run directory  {folder.url(first)}")
        show_report(folder.label)
        echo(f"compare  python -m pipeline runs {folder.label} --sort metric")
    if trials.cancelled:
        echo(f"{len(trials.cancelled)} trials were cancelled; the same command begins them again", sys.stderr)
        return INTERRUPTED
    if first is None:
        echo("no trial is finished", sys.stderr)
        statuses = {each.status for each in trials.records}
        return statuses.pop() or CRASH if len(statuses) == 1 else CRASH
    return DONE


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Return the sweep's own options, and the parameters of the components."""
    parser = LaunchParser("sweep", __doc__)
    add = parser.add_argument
    for flag, metavar, text in (
        ("--grid", "KEY=A,B", "values of a key; of several keys, all combinations"),
        ("--random", "KEY=RANGE", "draw the values of a key; with a grid, its points come in turn"),
        ("--optuna", "KEY=RANGE", "have Optuna's TPE choose the values of a key"),
    ):
        add(flag, metavar=metavar, help=text, nargs="+", action="extend", default=[])
    add("--trials", type=int, help="how many trials; of a grid alone all")
    add("--parallel", type=int, help="how many at once (default here: as many as cores or devices allow)")
    add("--seed", type=int, default=0, help="of random draws and of Optuna (default: 0)")
    add("--metric", default="", help="what trials are compared by (default: checkpoints.monitor of the configuration)")
    add("--mode", default="", choices=("min", "max"), help="which is better (default: checkpoints.mode, or min)")
    add("--pruner", default="none", choices=PRUNERS, help="Optuna stops what is worse than others (default: none)")
    add("--evaluate", default="best", choices=("best", "all", "none"), help="which trials are tested (default: best)")
    add("--retry_failed", action="store_true", help="begin failed trials again")
    add_scheduler_options(parser)
    parser.set_defaults(name="", detach=False)
    names = add_parameters(parser)
    options = parser.parse_args(arguments)
    return options, {name: getattr(options, name) for name in names}


def _space(options: argparse.Namespace, app_args: Sequence[str]) -> SweepSpace:
    """Return what is tried.

    Raises:
        UserError: All that is wrong with it.
    """
    keys = [each.partition("=")[0] for each in (*options.grid, *options.random, *options.optuna)]
    given = {each.partition("=")[0] for each in app_args}
    problems = [
        f"{key} is also a flag after --, which all trials share: remove one" for key in keys if f"--{key}" in given
    ]
    problems += [f"{key} is the sweep's own: give {_OWN[key]}" for key in keys if key in _OWN]
    if options.pruner != "none" and not options.optuna:
        problems.append(f"pruner={options.pruner!r} is Optuna's: it needs --optuna")
    try:
        space = SweepSpace.parse(options.grid, options.random, options.optuna, options.trials, options.seed)
    except UserError as error:
        raise UserError(*error.problems, *problems) from None
    if problems:
        raise UserError(*problems)
    return space


def _stop(number: int, _: object) -> NoReturn:
    raise _Terminated if number == signal.SIGTERM else KeyboardInterrupt
