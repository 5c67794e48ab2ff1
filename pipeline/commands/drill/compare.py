"""Whether a run that was disturbed has become what it would have been: bit for bit, step by step."""

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoint.load import load, newest_verified
from pipeline.commands.drill.notes import Note, Noted
from pipeline.commands.verify import verify
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir
from pipeline.training.run_state import RunState

_CLOSE = 1e-2
"""Where the world was another one for a while: sums are then made in another order, which training amplifies."""
_SHOWN = 3


@dataclass(frozen=True)
class Comparison:
    """What was compared, whether it is as it must be, and what was found."""

    name: str
    holds: bool
    found: str


@dataclass(frozen=True)
class Trained:
    """A run that has ended, and what was noted of its steps."""

    run: RunDir
    noted: Noted


def compare(reference: Trained, drilled: Trained, resized_at: int | None = None) -> list[Comparison]:
    """Compare a drilled run with the straight one.

    Args:
        reference: Trained straight.
        drilled: The same under faults.
        resized_at: The step from which on the world was another one for a while; what follows is then close at best.
    """
    left, right = _checkpoint(reference.run), _checkpoint(drilled.run)
    if left is None or right is None:
        missing = reference.run if left is None else drilled.run
        return [Comparison("checkpoint", False, f"{missing} has no good one")]
    steps = left["global_step"], right["global_step"]
    found = [Comparison("final step", steps[0] == steps[1], f"{steps[1]}, the reference's is {steps[0]}")]
    if resized_at is None:
        found.append(same("weights", left["state_dict"], right["state_dict"]))
        found.append(same("optimizers", _optimizing(left), _optimizing(right)))
    else:
        found.append(close("weights", left["state_dict"], right["state_dict"]))
    found.append(losses(reference.noted, drilled.noted, resized_at))
    found.append(steps_done(reference.noted, drilled.noted))
    found.append(ledger(_ledger(left), _ledger(right), resized=resized_at is not None))
    found.append(_verified(drilled.run))
    return found


def same(name: str, left: Any, right: Any) -> Comparison:
    """Compare two trees of tensors and values bit for bit."""
    ours, theirs = dict(_leaves(left, "")), dict(_leaves(right, ""))
    different = [
        f"{key}: {_differs(ours.get(key), theirs.get(key))}"
        for key in dict.fromkeys((*ours, *theirs))
        if not _equal(ours.get(key), theirs.get(key))
    ]
    if not different:
        return Comparison(name, True, "equal bit for bit")
    return Comparison(name, False, _some(different))


def close(name: str, left: dict[str, Tensor], right: dict[str, Tensor]) -> Comparison:
    """Compare two sets of tensors by size."""
    if left.keys() != right.keys():
        return Comparison(name, False, _some([str(key) for key in left.keys() ^ right.keys()]))
    most = max(
        (float((right[key].double() - tensor.double()).abs().max()) for key, tensor in left.items() if tensor.numel()),
        default=0.0,
    )
    near = all(
        torch.allclose(tensor.double(), right[key].double(), rtol=_CLOSE, atol=_CLOSE) for key, tensor in left.items()
    )
    return Comparison(name, near, f"{'close' if near else 'not close'}: {most:.2g} apart at most (resized)")


def losses(reference: Noted, drilled: Noted, resized_at: int | None = None) -> Comparison:
    """Compare the losses of each step of each rank, those of its repetitions too, with the reference's."""
    different, compared = [], 0
    for rank, notes in enumerate(drilled.of):
        known = {note.step: note.losses for note in reference.of[rank]}
        for note in notes:
            if note.step not in known or (resized_at is not None and note.step > resized_at):
                continue
            compared += 1
            if note.losses != known[note.step]:
                different.append(f"step {note.step} on rank {rank}: {_shown(note)}, was {_shown(known[note.step])}")
    if different:
        return Comparison("losses", False, _some(different))
    until = "" if resized_at is None else f" up to step {resized_at}, where it was resized"
    return Comparison("losses", compared > 0, f"{compared} equal bit for bit, repeated ones included{until}")


def steps_done(reference: Noted, drilled: Noted) -> Comparison:
    """Compare which steps rank 0 has done."""
    left, right = ({note.step for note in noted.of[0]} for noted in (reference, drilled))
    different = [f"step {step} is missing" for step in sorted(left - right)]
    different += [f"step {step} is one too many" for step in sorted(right - left)]
    return Comparison("steps", not different, _some(different) if different else f"all {len(left)} were done")


def ledger(left: Any, right: Any, resized: bool = False) -> Comparison:
    """Compare the accounts of all epochs.

    Args:
        left: The reference's.
        right: The other run's.
        resized: The world was another one for a while, in which the tail of an epoch is padded or dropped differently.
    """
    if left is None and right is None:
        return Comparison("ledger", True, "none: only pipeline.data.DataModule's samples are accounted for")
    ours, theirs = ([_without_tail(each) if resized else each for each in side or ()] for side in (left, right))
    # Where the last validation was left and done again, the last checkpoint stands before the end of its epoch.
    if ours and theirs and theirs[-1]["closed"] is None:
        theirs[-1] = {**theirs[-1], **{name: ours[-1][name] for name in ("closed", "dropped") if name in ours[-1]}}
    different = [
        f"account {number}: {right}, the reference has {left}"
        for number, (left, right) in enumerate(zip_longest(ours, theirs), 1)
        if left != right
    ]
    if different:
        return Comparison("ledger", False, _some(different))
    but = " but for padding and dropping, which verify judges (resized)" if resized else ""
    return Comparison("ledger", True, f"{len(ours)} accounts of epochs are equal{but}")


def _without_tail(account: dict[str, Any]) -> dict[str, Any]:
    """What an account says that is the same in every world."""
    counted = account["consumed"][0] - account["padded"] + account["dropped"]
    return {**{name: account[name] for name in ("epoch", "seed", "samples", "closed", "withheld")}, "counted": counted}


def _verified(run: RunDir) -> Comparison:
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            verdict = verify(run)
    except UserError as error:
        return Comparison("verify", "holds no ledger" in str(error), str(error))
    failed = [line for line in (*said.getvalue().splitlines(), *verdict.text.splitlines()) if "FAILED" in line]
    return Comparison("verify", verdict.holds, _some(failed) if failed else "every checkpoint and every sample")


def _checkpoint(run: RunDir) -> dict[str, Any] | None:
    found = newest_verified(run)
    return None if found is None else load(run, found[0])


def _optimizing(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return {name: checkpoint.get(name) for name in ("optimizer_states", "lr_schedulers")}


def _ledger(checkpoint: dict[str, Any]) -> Any:
    state = RunState.of_checkpoint(checkpoint)
    return None if state is None else state.ledger


def _leaves(value: Any, at: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(each, f"{at}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from _leaves(each, f"{at}.{index}".lstrip("."))
    else:
        yield at, value


def _equal(left: Any, right: Any) -> bool:
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return type(left) is type(right) and (left == right or (left != left and right != right))  # noqa: PLR0124
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    # As bytes: NaN is then equal to itself, and 0.0 not to -0.0.
    return torch.equal(*(each.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for each in (left, right)))


def _differs(left: Any, right: Any) -> str:
    if not isinstance(left, Tensor) or not isinstance(right, Tensor) or left.shape != right.shape:
        return f"{_brief(right)}, the reference has {_brief(left)}"
    apart = (right.double() - left.double()).abs()
    return f"{int((apart != 0).sum())} of {apart.numel()} values differ, by {float(apart.max()):.2g} at most"


def _brief(value: Any) -> str:
    return f"a tensor of {list(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.60}"


def _shown(note: Note | tuple[str, ...]) -> str:
    exact = note.losses if isinstance(note, Note) else note
    return " ".join(exact)


def _some(texts: list[str]) -> str:
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more
