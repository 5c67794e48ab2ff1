"""`python -m pipeline explain_resume`: what the next start would do, without doing it."""

from itertools import islice
from typing import Any

from pipeline.checkpoint.io import read_own
from pipeline.checkpoint.record import CommitRecord, examined
from pipeline.data import DataModule
from pipeline.drift import another_order, differences, facts
from pipeline.errors import UserError
from pipeline.run_dir import RunDir

_SHOWN = 8
"""Indices shown of each rank."""


def explain(run: RunDir, data: Any, seed: Any, accumulate: int, world_size: int | None) -> str:
    """What a fit would go on from, what would be different, and which samples would come next.

    Args:
        run: The run directory.
        data: The data that the fit would train on.
        seed: The resolved `seed_everything`.
        accumulate: Batches per optimizer step.
        world_size: Processes that would train; None: as many as the checkpoint says.

    Raises:
        UserError: A damaged checkpoint, or data that do not go with that world.
    """
    lines = [f"run directory  {run}"]
    record = None
    for step, found in examined(run):
        if isinstance(found, CommitRecord):
            record = found
            break
        lines.append(f"passed over    step {step}: {found}")
    if world_size is not None and world_size < 1:
        raise UserError(f"world_size={world_size}: allowed are 1 and more processes")
    now = facts(world_size or (record.world_size if record is not None else 1), seed, accumulate, data)
    if record is None:
        return "\n".join([*lines, "checkpoint     none: training would begin at step 0", *_next(data, now, 0, 0)])
    lines.append(f"checkpoint     step {record.step}, committed {record.created} ({', '.join(record.reason)})")
    own = read_own(run.url_of(record.name))
    epoch, position = record.epoch, record.position
    if own is None:
        return "\n".join([*lines, "differences    not known: another program wrote it"])
    found_differences = differences(own["facts"], now)
    lines += [
        f"difference     {difference}"
        + (f"  REFUSED unless --accept_drift={difference.name}" if difference.dangerous else "")
        for difference in found_differences
    ] or ["differences    none"]
    if position is None or not isinstance(data, DataModule):
        return "\n".join([*lines, f"position       epoch {epoch}; foreign data: where in it is not known"])
    size = len(data.datasets["train"])  # type: ignore[arg-type]
    lines.append(f"position       epoch {epoch}, {position} of its samples are used")
    if another_order(found_differences) and position:
        lines.append(f"               begins epoch {epoch} anew, for its order is another one ({size} samples)")
        position = 0
    elif position > size:
        return "\n".join([*lines, f"               IMPOSSIBLE: the training set has only {size}"])
    return "\n".join([*lines, *_next(data, now, epoch, position)])


def _next(data: Any, now: dict[str, Any], epoch: int, position: int) -> list[str]:
    """The first indices of each rank's next batches."""
    if not isinstance(data, DataModule):
        return []
    world_size, accumulate = now["world_size"], now["accumulate_grad_batches"]
    lines: list[str] = []
    for rank in range(world_size):
        batches = data.planned(epoch, position, rank, world_size, accumulate)
        if not batches.count(position):
            return [*lines, f"next samples   those of epoch {epoch + 1}: none are left of this one"]
        indices = list(islice((index for batch in batches for index in batch), _SHOWN))
        more = ", ..." if len(indices) == _SHOWN else ""
        lines.append(f"next samples   rank {rank}: {', '.join(map(str, indices))}{more}")
    return lines
