"""The app: parse, open the run, choose the resume point, build, attach the session, run, report the outcome.

Everything that the user must change is found before a model is built or a device is taken, all problems at once. What
must be the same for all ranks is decided by rank 0.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.distributed

from pipeline.checkpoint.cleanup import remove_leftovers
from pipeline.checkpoint.foreign import fetch
from pipeline.checkpoint.load import fetch_verified
from pipeline.checkpoint.weight_files import require_checkpoint
from pipeline.config import compatibility, early_preparation, mistakes, resume_point, run_loggers, saved_config
from pipeline.config.flags import INSPECTING
from pipeline.config.memory_state import MemoryState, RunMemory
from pipeline.config.parser import CommandLine
from pipeline.config.resume_point import ResumePoint
from pipeline.config.validate import find_problems, require_batchnorm_device
from pipeline.data.datamodule import DataModule
from pipeline.data.ledger import Ledger
from pipeline.errors import DONE, UserError, outcome
from pipeline.process import end_facts, started_runs
from pipeline.process.host_memory import HostMemory
from pipeline.process.log_format import chosen
from pipeline.process.patience import Patience, given_away_limit, patience
from pipeline.process.preemption import Preemption
from pipeline.process.topology import Topology
from pipeline.run import order_values
from pipeline.run.attempts import AttemptLog
from pipeline.run.run_dir import PREDICTIONS, RunDir, next_run_dir
from pipeline.training import compat, epoch_loop, evaluation_loop
from pipeline.training.checkpoint_io import RunIO
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.hooks import SessionHooks
from pipeline.training.loaders import loader_compat
from pipeline.training.logs import console, step_profile
from pipeline.training.logs.mirror import mirrored
from pipeline.training.monitored_metric import refusals_explained
from pipeline.training.nonfinite import CONTINUE, NonFiniteGuard
from pipeline.training.results.predictions import Predictions
from pipeline.training.results.receipt import UNPROVEN, Evaluation
from pipeline.training.session import TrainingSession
from pipeline.training.state.weights import InitialWeights
from pipeline.training.stop_vote import StopVote
from pipeline.training.telemetry.telemetry import telemetry_of_fit
from pipeline.training.trainer_state import TrainerState

log = logging.getLogger(__name__)


class _Start(NamedTuple):
    """What a fit runs with."""

    command: CommandLine
    run: RunDir | None
    point: ResumePoint
    topology: Topology
    writer: AttemptLog
    preemption: Preemption
    memory: RunMemory | None


def main(arguments: Sequence[str], preemption: Preemption | None = None) -> int:
    """Run one command line of Lightning's subcommands.

    Args:
        arguments: Without the program's name.
        preemption: Listens to signals; None: no signal is listened to.

    Returns:
        The exit status, see `pipeline.errors.outcome`. Crashes raise.
    """
    topology, preemption = None, preemption or Preemption()
    try:
        console.write_as(chosen(arguments))
        topology = Topology.from_environment()
        console.set_up(topology)
        bound = Patience(given_away_limit(arguments), preemption.check)
        with AttemptLog() as writer, mistakes.reported(), patience(bound):
            _run(list(arguments), topology, writer, preemption)
    except (Exception, KeyboardInterrupt) as error:
        ended = outcome(error)
        end_facts.note(reason=ended.reason)
        if not ended.expected:
            raise
        console.report(error, topology)
        return ended.status
    finally:
        console.settle()
    # Not after a crash: the other ranks may be gone, and the process is about to end.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return DONE


def _run(arguments: list[str], topology: Topology, writer: AttemptLog, preemption: Preemption) -> None:
    """Run one subcommand, from its flags to its outcome."""
    command = CommandLine(arguments, topology)
    console.write_as(command.asked.get("log_format"))
    if command.subcommand in INSPECTING:
        from pipeline.commands.inspection.command import inspect  # noqa: PLC0415 - a training needs none of it

        inspect(command)
        return
    end_facts.note(command=command.subcommand, notify=command.asked.notify, run_dir=command.asked.run_dir)
    problems = find_problems(str(command.subcommand), command.asked, command.given_checkpoint, topology)
    if problems:
        raise UserError(*problems)
    if command.subcommand == "fit":
        preemption.grace = command.asked.grace
    preemption.leaving = writer.leave
    preemption.mark_opened()
    preemption.check()
    with patience(Patience(command.asked.away_limit, preemption.check)):
        _run_model(command, topology, writer, preemption)


def _run_model(command: CommandLine, topology: Topology, writer: AttemptLog, preemption: Preemption) -> None:
    """Open the run, choose the resume point, build, and hand over to the trainer."""
    run = _open_run(command, topology, writer)
    memory = None
    if run is not None and command.subcommand == "fit" and command.asked.memory_checkpoints:
        memory = RunMemory(run, topology, writer.attempt, HostMemory.of_environment())
    point = _choose_resume_point(command, run, topology, memory)
    if point.finished:
        log.info("finished: %s is done at step %d; nothing to train (%s)", run, point.step, point.finished)
        return
    preemption.check()
    record = None if point.memory else point.record
    if run is not None and record is not None:
        # Each node fetches it now, while the ranks wait for each other: within the trainer they would time out.
        topology.together("checkpoint", lambda: str(fetch_verified(run, record)))
    elif point.record is None and (url := point.url) is not None:
        topology.together("checkpoint", lambda: fetch(url, f"ckpt_path={url!r}"))
    plugins = [RunIO(run, point.record, point.ckpt_path if point.memory else None)]
    logger = run_loggers.prepare(command, run, point, topology)
    topology.together("datasets", lambda: command.prepare_datasets() if topology.local_rank == 0 else None)
    topology.together("instantiated", lambda: command.build(plugins, logger))
    preemption.check()
    require_batchnorm_device(command.asked, command.trainer, command.model)
    if command.subcommand == "fit":
        start = _Start(command, run, point, topology, writer, preemption, memory)
        _attach_session(start)
        _fit(start)
    elif command.subcommand == "test" and run is not None:
        _test(command, run, point)
    elif command.subcommand == "predict" and run is not None:
        _predict(command, run, point, topology, preemption)
    else:
        _call_trainer(command, point)


def _open_run(command: CommandLine, topology: Topology, writer: AttemptLog) -> RunDir | None:
    """Return the run directory, the same for all nodes, of which a fit becomes the one writer; None for a dry run."""
    asked = command.asked
    fits = command.subcommand == "fit"
    if asked.trainer.fast_dev_run or not (fits or asked.run_dir is not None):
        return None
    run = RunDir(topology.agree("run_dir", lambda: asked.run_dir or next_run_dir(saved_config.run_name(asked))))
    started_before = resume_point.require_shared_run_dir(run, topology)
    if fits:
        if started_before:
            topology.agree("run directory", lambda: resume_point.require_not_removed(run))
        writer.take(run, topology, command.resolved())
        started_runs.remember(run.url)
    return run


def _choose_resume_point(
    command: CommandLine, run: RunDir | None, topology: Topology, memory: RunMemory | None
) -> ResumePoint:
    """Return where all ranks start; in a fit, what killed saves left is swept once that is known."""
    if command.subcommand == "fit":
        return resume_point.agreed(topology, memory, lambda held: _where_training_starts(command, run, held))
    return resume_point.agreed(topology, None, lambda _: _what_is_evaluated(command, run))


def _where_training_starts(command: CommandLine, run: RunDir | None, held: MemoryState | None) -> ResumePoint:
    point = ResumePoint()
    if run is not None:
        resolved = command.resolved()
        point = resume_point.for_training(run, resolved, command.given_checkpoint, memory=held)
        if point.finished and run.read(RunDir.config("fit")) is None:  # killed between its only commit and this
            saved_config.save(run, "fit", resolved)
        remove_leftovers(run, spare=point.url)
    if point.url is not None and point.record is None:  # a run of its own checkpoints needs no other
        require_checkpoint(point.url, trains=True, weights_only=command.weights_only)
    return resume_point.with_weights(point, command.asked)


def _what_is_evaluated(command: CommandLine, run: RunDir | None) -> ResumePoint:
    resolved, asked, given = command.resolved(), command.asked, command.given_checkpoint
    point = ResumePoint(url=given)
    if given is not None:
        require_checkpoint(given, trains=False, weights_only=command.weights_only)
    if given is None and asked.run_dir is not None:
        point = resume_point.for_evaluation(RunDir(asked.run_dir), resolved, asked.checkpoint)
    elif command.subcommand == "test" and run is not None and not asked.unproven:
        resume_point.require_trained_here(run, str(point.url), UNPROVEN)
    if run is not None:
        saved_config.save(run, str(command.subcommand), resolved)
    return point


def _attach_session(start: _Start) -> None:
    """Compare with the run that is resumed, and have the training session called between two batches."""
    command, run, point, topology, writer, preemption, memory = start
    asked, trainer, data = command.asked, command.trainer, command.datamodule
    facts: dict[str, Any] = {}
    if isinstance(data, DataModule):
        early_preparation.set_up(data, trainer, topology)
    known = topology.world_size, asked.seed_everything, asked.trainer.accumulate_grad_batches
    topology.together("facts", lambda: facts.update(compatibility.facts(*known, data, asked.trainer)))
    resume_point.require_same_data(facts, topology)
    if run is not None and isinstance(data, DataModule) and (order := data.train_order) is not None:
        topology.agree("order", lambda: order_values.keep(run, order.facts["values"], order.values))
    restart_epoch = topology.agree(
        "compatibility",
        lambda: compatibility.check_resume(point.run_state(command.weights_only), facts, asked.allow_mismatch),
    )
    if point.weights is not None:
        weights = InitialWeights(**point.weights)
        topology.together("weights", weights.check)  # each node fetches them before its ranks wait in collectives
        compat.at_restore(trainer, lambda: weights.load_into(command.model))
    epoch_loop.install(trainer)
    ledger, resolved = Ledger(data) if isinstance(data, DataModule) else None, command.resolved()
    state = TrainerState(trainer, facts, ledger, restart_epoch, resolved, asked.override_optimizer)
    vote = StopVote(preemption)
    telemetry = telemetry_of_fit(run, topology, writer, asked.telemetry_every, asked.metrics_port)
    session = TrainingSession(state, vote, writer.goodput, telemetry=telemetry)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if run is not None:
        if point.record is not None:
            resolved = saved_config.keep_weights(saved_config.load(run, "fit"), resolved)
        for callback in callbacks:
            if isinstance(callback, Checkpoints):
                session = callback.open_session(
                    *(run, state, vote, writer, point.committed, lambda _: saved_config.save(run, "fit", resolved)),
                    None if memory is None else memory.checkpoints(point.memory),
                    point.uncommitted,
                    telemetry,
                )
        if session.saver is None and point.own is None:
            callbacks.insert(0, saved_config.SaveConfiguration(run, resolved))
    if topology.rank == 0 and (saver := session.saver) is not None:
        preemption.durable, preemption.saving = lambda: saver.durable, lambda: saver.saving
    if run is not None:
        step_profile.keep_summary(trainer, run, writer.attempt)
        if (steps := step_profile.window(asked.profile)) is not None:
            callbacks.insert(0, step_profile.StepProfile(run, writer.attempt, steps))
    if asked.on_nan != CONTINUE:
        guard = NonFiniteGuard(asked.on_nan, ledger, writer.skipped, lambda: vote.group)
        kept_last = [at for at, callback in enumerate(callbacks) if isinstance(callback, Checkpoints)]
        callbacks.insert(kept_last[0] if kept_last else len(callbacks), guard)
    callbacks.insert(0, SessionHooks(session, watches=asked.on_nan == CONTINUE))
    command.progress.saver, command.progress.attempt = session.saver, writer.attempt or None


def _fit(start: _Start) -> None:
    """Train from the resume point."""
    command, run, point, topology, writer, preemption, _ = start
    again = f", attempt {writer.attempt}" if writer.attempt > 1 else ""
    log.info("started on %s%s: %s", topology, again, run or "fast_dev_run, nothing is written")
    if point.url:
        source = "host memory" if point.memory else point.url
        log.info("resumed%s from %s", "" if point.step is None else f" at step {point.step}", source)
    preemption.mark_training()
    topology.agree("begin", lambda: writer.begin(point.step if point.url else 0, point.source))
    run_loggers.note(command, run, topology)
    _call_trainer(command, point)
    if run is not None:
        trainer = command.trainer
        values = "".join(
            f", {name} {float(value):.6g}" for name, value in trainer.callback_metrics.items() if name.startswith("val")
        )
        result = f"step {trainer.global_step}, epoch {trainer.current_epoch}{values}"
        end_facts.note(result=result)
        log.info("finished: %s", result, extra={"ends": True})


def _test(command: CommandLine, run: RunDir, point: ResumePoint) -> None:
    """Score the test set exactly once, and leave a receipt of it."""
    url = str(point.url)
    foreign = resume_point.foreign_checkpoint(run, url) if point.record is None else None
    reasons = () if foreign is None else (foreign,)
    evaluation = Evaluation(run, url, point.sha256, unproven=command.asked.unproven, reasons=reasons)
    command.trainer.callbacks.append(evaluation)  # type: ignore[attr-defined]
    evaluation.watch(command.trainer, command.source)
    log.info("evaluating %s on 1 device", url)
    _call_trainer(command, point)
    evaluation.conclude(command.trainer)
    run_loggers.log_test(run, evaluation.receipt["metrics"], point.step)
    end_facts.note(result=evaluation.summary())
    log.info("finished: %s", evaluation.summary())


def _predict(command: CommandLine, run: RunDir, point: ResumePoint, topology: Topology, preemption: Preemption) -> None:
    """Predict each sample once, and keep what the model says of it."""
    url, sha256 = str(point.url), topology.agree("digest", lambda: point.sha256)
    config = saved_config.dump(command.resolved())
    predictions = Predictions(run, url, sha256, config, topology, preemption)
    predictions.watch(command.trainer, command.source)
    log.info("predicting with %s", url)
    if command.asked.return_predictions:
        log.info("return_predictions=true: a command returns nothing, read them from %s/%s", run, PREDICTIONS)
    preemption.mark_training()
    preemption.durable = lambda: "the parts that are written stay"
    _call_trainer(command, point)
    predictions.conclude(command.trainer)


def _call_trainer(command: CommandLine, point: ResumePoint) -> None:
    """Call the trainer's own method for the subcommand, and turn the user's mistakes among its errors into ours."""
    arguments = {**command.trainer_arguments(), "ckpt_path": point.ckpt_path}
    if command.subcommand == "test":
        arguments["verbose"] = arguments["verbose"] and console.on_terminal()
    if command.subcommand == "predict":
        arguments["return_predictions"] = False  # nobody would take them: they are written
    if point.url is None:
        compat.load_no_checkpoint(command.trainer)
    evaluation_loop.install(command.trainer)
    loader_compat.name_validation_sets(command.trainer, getattr(command.datamodule, "val_names", []))
    try:
        with refusals_explained(command.trainer), mirrored(command.trainer):
            getattr(command.trainer, str(command.subcommand))(**arguments)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning has replaced a person's Ctrl-C
            raise error.__context__ from None
        raise
    except RuntimeError as error:
        if "loading state_dict" not in str(error) or point.url is None or mistakes.where(error):
            raise
        raise UserError(
            f"the model does not fit the checkpoint {point.url}: {' '.join(str(error).split())}. Give the "
            "configuration that the run was started with, or another --run_dir"
        ) from error
