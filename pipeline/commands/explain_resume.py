"""`python -m pipeline explain_resume`: what the next start would do, without doing it."""

from itertools import islice
from typing import Any

from pipeline.checkpoint.commit import CommitRecord, examined
from pipeline.config.compatibility import another_order, differences, facts
from pipeline.config.resume_point import ResumePoint
from pipeline.data.datamodule import DataModule
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir

_SHOWN = 8
"""Indices shown of each rank."""


def explain(
    run: RunDir, begin: ResumePoint, changed: list[str], data: Any, seed: Any, accumulate: int, world_size: int | None
) -> str:
    """What a fit would go on from, what would be different, and which samples would come next.

    Args:
        run: The run directory.
        begin: Where the fit would go on.
        changed: What its configuration changes of the one that was saved.
        data: The data that it would train on.
        seed: The resolved `seed_everything`.
        accumulate: Batches per optimizer step.
        world_size: Processes that would train; None: as many as the checkpoint says.

    Raises:
        UserError: A damaged checkpoint, or data that do not go with that world.
    """
    if world_size is not None and world_size < 1:
        raise UserError(f"world_size={world_size}: allowed are 1 and more processes")
    lines = [_line("run directory", run)]
    for step, found in examined(run):
        if not isinstance(found, CommitRecord):
            lines.append(_line("passed over", f"step {step}: {found}"))
        elif begin.own and step != begin.step:
            lines.append(_line("passed over", f"step {step}: its bytes do not match its record"))
        else:
            break
    own = begin.run_state()
    saved = {} if own is None else own.facts
    now = facts(world_size or saved.get("world_size") or 1, seed, accumulate, data)
    epoch, position = (0, 0) if own is None else (own.epoch, own.position)
    lines.append(_line("checkpoint", _checkpoint(begin)))
    if begin.own:
        lines.append(_line("", "its bytes are compared with its record when a fit starts; `verify` compares all"))
    lines += [_line("configuration", change) for change in changed]
    if begin.finished:
        lines.append(_line("", "training is over: a fit with this configuration would do nothing"))
    if begin.url is not None and own is None:
        return "\n".join([*lines, _line("differences", "not known: another program wrote the checkpoint")])
    found_differences = differences(saved, now) if own is not None else []
    if own is not None:
        lines += [
            _line("difference", f"{each}{f'  REFUSED unless --allow_mismatch={each.name}' if each.dangerous else ''}")
            for each in found_differences
        ] or [_line("differences", "none in data, seeds, batches, processes and versions")]
    if not isinstance(data, DataModule) or position is None:
        return "\n".join([*lines, _line("position", f"epoch {epoch}; where in its data is not known")])
    size = len(data.datasets["train"])  # type: ignore[arg-type]
    lines.append(_line("position", f"epoch {epoch}, {position} of its samples are used"))
    if another_order(found_differences) and position:
        lines.append(_line("", f"begins epoch {epoch} anew, for its order is another one ({size} samples)"))
        position = 0
    elif position > size:
        return "\n".join([*lines, _line("", f"IMPOSSIBLE: the training set has only {size}")])
    return "\n".join([*lines, *_next(data, now, epoch, position)])


def _line(name: str, text: Any) -> str:
    return f"{name:15}{text}"


def _checkpoint(begin: ResumePoint) -> str:
    if begin.url is None:
        return "none: training would begin at step 0"
    return f"step {begin.step}" if begin.own else f"{begin.url}, as ckpt_path says"


def _next(data: DataModule, now: dict[str, Any], epoch: int, position: int) -> list[str]:
    """The first indices of each rank's next batches."""
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
