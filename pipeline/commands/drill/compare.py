"""Whether a run that was disturbed ended as it would have without: bit for bit, step by step."""

import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoint.load import load, newest_verified
from pipeline.commands.drill.step_log import StepLog
from pipeline.commands.verify import verify
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir
from pipeline.training.state.run_state import RunState

_CLOSE = 1e-2
"""After a resize: sums are then made in another order, and training amplifies that."""
_ALIKE = 3.0
"""How many times as far apart weights may be as those of the two world sizes are without any fault."""
_SHOWN = 3


@dataclass(frozen=True)
class Comparison:
    """What was compared, whether it is as it must be, and what was found."""

    name: str
    holds: bool
    found: str


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended, and the log of its steps."""

    run: RunDir
    log: StepLog


def compare(
    reference: TrainedRun,
    drilled: TrainedRun,
    resized_at: int | None = None,
    resized_reference: Callable[[], TrainedRun] | None = None,
) -> list[Comparison]:
    """Compare a drilled run with the undisturbed one.

    Args:
        reference: Trained undisturbed.
        drilled: The same under faults.
        resized_at: The step after which the world size was another one for a while; what follows is close at best.
        resized_reference: Trains undisturbed at that world size. Asked where the weights are not close: a model with
            dropout or BatchNorm differs between world sizes without any fault.
    """
    left, right = _checkpoint(reference.run), _checkpoint(drilled.run)
    if left is None or right is None:
        missing = reference.run if left is None else drilled.run
        return [Comparison("checkpoint", False, f"{missing} has no good one")]
    steps = left["global_step"], right["global_step"]
    found = [Comparison("final step", steps[0] == steps[1], f"{steps[1]}, the reference's is {steps[0]}")]
    if resized_at is None:
        found.append(compare_exactly("weights", left["state_dict"], right["state_dict"]))
        found.append(compare_exactly("optimizers", _optimizers(left), _optimizers(right)))
    else:
        found.append(compare_closeness("weights", left["state_dict"], right["state_dict"]))
        if not found[-1].holds and resized_reference is not None:
            other = _checkpoint(resized_reference().run)
            if other is not None:
                found[-1] = compare_by_control(found[-1], left["state_dict"], right["state_dict"], other["state_dict"])
    found.append(compare_losses(reference.log, drilled.log, resized_at))
    found.append(compare_steps(reference.log, drilled.log))
    found.append(compare_ledgers(_ledger(left), _ledger(right), resized=resized_at is not None))
    found.append(_verified(drilled.run))
    return found


def compare_exactly(name: str, left: Any, right: Any) -> Comparison:
    """Compare two trees of tensors and values bit for bit."""
    ours, theirs = dict(_leaves(left, "")), dict(_leaves(right, ""))
    different = [
        f"{key}: {_difference(ours.get(key), theirs.get(key))}"
        for key in {**ours, **theirs}
        if not _equal(ours.get(key), theirs.get(key))
    ]
    return _comparison(name, different, "equal bit for bit")


def compare_closeness(name: str, left: dict[str, Tensor], right: dict[str, Tensor]) -> Comparison:
    """Compare two sets of tensors by the size of their difference."""
    if left.keys() != right.keys():
        return Comparison(name, False, _some([str(key) for key in left.keys() ^ right.keys()]))
    near = all(torch.allclose(each.double(), right[key].double(), _CLOSE, _CLOSE) for key, each in left.items())
    found = f"{'close' if near else 'not close'}: {distance(left, right):.2g} apart at most (resized)"
    return Comparison(name, near, found)


def compare_by_control(
    found: Comparison, reference: dict[str, Tensor], drilled: dict[str, Tensor], control: dict[str, Tensor]
) -> Comparison:
    """Judge weights that are not close by how far apart those of the two world sizes are without any fault.

    Args:
        found: The comparison by closeness, which has failed.
        reference: Weights at the full world size.
        drilled: Weights of the run that was resized for a while.
        control: Weights at the smaller world size.
    """
    same = reference.keys() == drilled.keys() == control.keys()
    finite = all(bool(tensor.isfinite().all()) for tensor in drilled.values())
    if not same or not finite or compare_closeness("", reference, control).holds:
        return found
    apart, natural = distance(reference, drilled), distance(reference, control)
    return Comparison(
        found.name,
        apart <= _ALIKE * natural,
        f"{apart:.2g} apart at most, and {natural:.2g} between the two world sizes without any fault: this model "
        "depends on the world size, as dropout and BatchNorm do",
    )


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Return the greatest difference between two sets of tensors of the same names."""
    pairs = [(tensor.double(), right[key].double()) for key, tensor in left.items() if tensor.numel()]
    return max((float((theirs - ours).abs().max()) for ours, theirs in pairs), default=0.0)


def compare_losses(reference: StepLog, drilled: StepLog, resized_at: int | None = None) -> Comparison:
    """Compare the losses of each step of each rank, also of each repetition, with the reference's."""
    different, compared = [], 0
    for rank, entries in enumerate(drilled.ranks):
        known = {entry.step: entry.losses for entry in reference.ranks[rank]}
        for entry in entries:
            if entry.step not in known or (resized_at is not None and entry.step > resized_at):
                continue
            compared += 1
            if entry.losses != known[entry.step]:
                now, then = " ".join(entry.losses), " ".join(known[entry.step])
                different.append(f"step {entry.step} on rank {rank}: {now}, was {then}")
    until = "" if resized_at is None else f" up to step {resized_at}, where it was resized"
    found = _comparison("losses", different, f"{compared} equal bit for bit, repeated ones included{until}")
    return found if compared else Comparison("losses", False, found.found)


def compare_steps(reference: StepLog, drilled: StepLog) -> Comparison:
    """Compare which steps rank 0 has done."""
    left, right = ({entry.step for entry in log.first} for log in (reference, drilled))
    different = [f"step {step} is missing" for step in sorted(left - right)]
    different += [f"step {step} is one too many" for step in sorted(right - left)]
    return _comparison("steps", different, f"all {len(left)} were done")


def compare_ledgers(left: Any, right: Any, resized: bool = False) -> Comparison:
    """Compare the ledgers' records of all epochs.

    Args:
        left: The reference's.
        right: The other run's.
        resized: The world size was another one for a while, so that the tail of an epoch was padded or dropped
            differently.
    """
    if left is None and right is None:
        return Comparison("ledger", True, "none: only pipeline.data.DataModule's samples are accounted for")
    ours, theirs = ([_without_tail(each) if resized else each for each in side or ()] for side in (left, right))
    # Where the last validation was interrupted and repeated, the last checkpoint is before the end of its epoch.
    if ours and theirs and theirs[-1]["closed"] is None:
        theirs[-1] = {**theirs[-1], **{name: ours[-1][name] for name in ("closed", "dropped") if name in ours[-1]}}
    different = [
        f"account {number}: {right}, the reference has {left}"
        for number, (left, right) in enumerate(zip_longest(ours, theirs), 1)
        if left != right
    ]
    but = " but for padding and dropping, which verify judges (resized)" if resized else ""
    return _comparison("ledger", different, f"{len(ours)} accounts of epochs are equal{but}")


def _without_tail(account: dict[str, Any]) -> dict[str, Any]:
    """Return what an epoch's record says that is the same at every world size."""
    counted = account["consumed"][0] - account["padded"] + account["dropped"]
    return {**{name: account[name] for name in ("epoch", "seed", "samples", "closed", "withheld")}, "counted": counted}


def _verified(run: RunDir) -> Comparison:
    output = io.StringIO()
    try:
        with redirect_stdout(output):
            verdict = verify(run)
    except UserError as error:
        return Comparison("verify", "holds no ledger" in str(error), str(error))
    failed = [line for line in (*output.getvalue().splitlines(), *verdict.text.splitlines()) if "FAILED" in line]
    return Comparison("verify", verdict.holds, _some(failed) if failed else "every checkpoint and every sample")


def _checkpoint(run: RunDir) -> dict[str, Any] | None:
    found = newest_verified(run)
    return None if found is None else load(run, found[0])


def _ledger(checkpoint: dict[str, Any]) -> Any:
    state = RunState.of_checkpoint(checkpoint)
    return None if state is None else state.ledger


def _optimizers(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return {name: checkpoint.get(name) for name in ("optimizer_states", "lr_schedulers")}


def _leaves(value: Any, at: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list, tuple)):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(each, f"{at}.{key}".lstrip("."))
    else:
        yield at, value


def _equal(left: Any, right: Any) -> bool:
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return type(left) is type(right) and (left == right or (left != left and right != right))  # noqa: PLR0124
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    # As bytes: NaN is then equal to itself, and 0.0 not to -0.0.
    return torch.equal(*(each.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for each in (left, right)))


def _difference(left: Any, right: Any) -> str:
    if not isinstance(left, Tensor) or not isinstance(right, Tensor) or left.shape != right.shape:
        return f"{_brief(right)}, the reference has {_brief(left)}"
    apart = (right.double() - left.double()).abs()
    return f"{int((apart != 0).sum())} of {apart.numel()} values differ, by {float(apart.max()):.2g} at most"


def _brief(value: Any) -> str:
    return f"a tensor of {list(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.60}"


def _comparison(name: str, different: list[str], otherwise: str) -> Comparison:
    return Comparison(name, not different, _some(different) if different else otherwise)


def _some(texts: list[str]) -> str:
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more
