"""What the next start would do, without doing it."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from pipeline.checkpoint.commit import CommitRecord, examined
from pipeline.config import resume_point, saved_config
from pipeline.config.compatibility import facts, find_mismatches, order_changed
from pipeline.config.parser import CommandLine
from pipeline.config.resume_point import ResumePoint
from pipeline.config.validate import find_problems
from pipeline.data.datamodule import DataModule
from pipeline.errors import UserError
from pipeline.process.topology import Topology
from pipeline.run.goodput_report import SOURCES
from pipeline.run.run_dir import RunDir
from pipeline.training.logs import console

_SHOWN = 8
"""Indices shown of each rank."""
_ATTEMPTS = 20
"""How many of the newest are read."""


def explain_fit(flags: Sequence[str], world_size: int | None) -> str:
    """Explain the resume that the flags of a fit would lead to.

    Args:
        flags: Those that are left out are the run's own.
        world_size: Processes that would train; None: as many as the checkpoint says.

    Raises:
        UserError: Everything for which the fit itself would refuse to start, or its data cannot be built.
    """
    topology = Topology.from_environment()
    console.set_up(topology)
    command = CommandLine(["fit", *saved_config.with_run_config("explain_resume", list(flags))], topology)
    config = command.asked
    problems = find_problems("fit", config, command.given_checkpoint, topology)
    if config.run_dir is None:
        problems.append("run_dir is missing: name the run whose resume to explain, --run_dir <url>")
    if problems:
        raise UserError(*problems)
    run, resolved = RunDir(config.run_dir), command.resolved()
    begin = resume_point.for_training(run, resolved, command.given_checkpoint, verify=run.is_local)
    changed = saved_config.changes(saved_config.load(run, "fit"), resolved)
    data = command.build_data()
    if isinstance(data, DataModule):
        data.prepare_early(True)
        data.set_up_early()
    return explain(run, begin, changed, data, config, world_size)


def explain(run: RunDir, begin: ResumePoint, changed: list[str], data: Any, config: Any, world_size: int | None) -> str:
    """Return what a fit would resume from, what would be different, and which samples would come next.

    Args:
        run: The run directory.
        begin: Where the fit would resume.
        changed: What its configuration changes of the saved one.
        data: The data that it would train on.
        config: What is asked for.
        world_size: Processes that would train; None: as many as the checkpoint says.

    Raises:
        UserError: The checkpoint is damaged, or the data do not fit that world size.
    """
    if world_size is not None and world_size < 1:
        raise UserError(f"world_size={world_size} must be >= 1")
    lines = _checkpoint_lines(run, begin) + [_line("configuration", change) for change in changed]
    if begin.finished:
        lines.append(_line("", "training is over: a fit with this configuration would do nothing"))
    if config.weights:
        used = "training starts from them" if begin.url is None else "not used: the run has a checkpoint to resume from"
        lines.append(_line("weights", f"{config.weights}: {used}"))
    own = begin.run_state()
    if begin.url is not None and own is None:
        return "\n".join([*lines, _line("mismatches", "not known: another program wrote the checkpoint")])
    saved = {} if own is None else own.facts
    seed, accumulate = config.seed_everything, config.trainer.accumulate_grad_batches
    now = facts(world_size or saved.get("world_size") or 1, seed, accumulate, data, config.trainer)
    found = [] if own is None else find_mismatches(saved, now)
    lines += [
        _line("mismatch", f"{each}{f'  REFUSED unless --allow_mismatch={each.name}' if each.stops_resume else ''}")
        for each in found
    ]
    if own is not None and not found:
        lines.append(_line("mismatches", "none in data, seeds, batches, processes and versions"))
    epoch, position = (0, 0) if own is None else (own.epoch, own.position)
    if not isinstance(data, DataModule) or position is None:
        return "\n".join([*lines, _line("position", f"epoch {epoch}; its position in the data is not known")])
    size = data.epoch_size
    lines.append(_line("position", f"epoch {epoch}, {position} of its samples are used"))
    if order_changed(found) and position:
        lines.append(_line("", f"restarts epoch {epoch} from its beginning: its order has changed ({size} samples)"))
        position = 0
    elif position > size:
        return "\n".join([*lines, _line("", f"IMPOSSIBLE: an epoch has only {size}")])
    return "\n".join([*lines, *_next_samples(data, now, epoch, position)])


def _line(name: str, text: Any) -> str:
    return f"{name:15}{text}"


def _checkpoint_lines(run: RunDir, begin: ResumePoint) -> list[str]:
    """Return which checkpoint would be loaded, and why newer ones would not be."""
    lines = [_line("run directory", run)]
    attempts = run.read_jsons(map(RunDir.attempt, sorted(run.attempts(), reverse=True)[:_ATTEMPTS]))
    resumed = (each for each in attempts.values() if each and each.get("resumed_from") in SOURCES)
    if (last := next(resumed, None)) is not None:
        words = f"attempt {last.get('attempt')} resumed at step {last.get('first_step')} from {last['resumed_from']}"
        lines.append(_line("before", words))
    for step, found in examined(run):
        if not isinstance(found, CommitRecord):
            lines.append(_line("skipped", f"step {step}: {found}"))
        elif begin.own and step != begin.step:
            lines.append(_line("skipped", f"step {step}: its bytes do not match its record"))
        else:
            break
    if begin.url is None:
        return [*lines, _line("checkpoint", "none: training would begin at step 0")]
    if not begin.own:
        return [*lines, _line("checkpoint", f"{begin.url}, as ckpt_path says")]
    hints = (
        "a fit compares its bytes with its record when it starts; `verify` compares all",
        "agents that restart a fit resume from a newer state if a node has one in memory",
    )
    return [*lines, _line("checkpoint", f"step {begin.step}"), *(_line("", hint) for hint in hints)]


def _next_samples(data: DataModule, now: dict[str, Any], epoch: int, position: int) -> list[str]:
    """Return the first indices of each rank's next batches."""
    world_size, accumulate = now["world_size"], now["accumulate_grad_batches"]
    lines: list[str] = []
    for rank in range(world_size):
        batches = data.planned(epoch, position, rank, world_size, accumulate)
        if not batches.count(position):
            return [*lines, _line("next samples", f"those of epoch {epoch + 1}: none are left of this one")]
        indices = list(islice((index for batch in batches for index in batch), _SHOWN))
        more = ", ..." if len(indices) == _SHOWN else ""
        lines.append(_line("next samples", f"rank {rank}: {', '.join(map(str, indices))}{more}"))
    return lines
