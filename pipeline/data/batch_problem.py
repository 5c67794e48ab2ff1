"""Why samples do not fit into one batch: which of them, in which field, and what they hold there."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.data.sample_fields import leaves

_TOLD = 4
"""Fields, and samples of each field, that a message names."""
_TAKEN = (torch.Tensor, np.ndarray, np.generic, bool, int, float, str, bytes)
"""What torch's collate function makes a batch of, beside mappings and sequences of it."""
_ADVICE = (
    "torch's collate function stacks what is alike in all samples of a batch: have the dataset return that, or name a "
    "function of yours that makes a batch of a list of samples (it may pad them, say): --data.collate_fn=<import path>"
)


def misfits(samples: Sequence[Any], indices: Sequence[int] | None) -> str | None:
    """Return what keeps samples from being one batch, in one sentence, and what to do; None if nothing is found.

    Args:
        samples: That torch's collate function has refused.
        indices: Theirs; None: not known, and they are counted from 0.
    """
    names = [f"sample {each}" for each in (indices or range(len(samples)))]
    held = [dict(leaves(sample)) for sample in samples]
    found = []
    for field in dict.fromkeys(path for each in held for path in each):
        name = f"field {field!r}" if field else "the sample"
        problem = _of_field(name, [each.get(field, _Nothing) for each in held], names)
        found += [problem] if problem else []
    if not found:
        return None
    more = f"; and {len(found) - _TOLD} more fields" if len(found) > _TOLD else ""
    return f"samples do not fit into one batch: {'; '.join(found[:_TOLD])}{more}. {_ADVICE}"


class _Nothing:
    """Stands for a field that a sample lacks."""


def _of_field(field: str, values: Sequence[Any], names: Sequence[str]) -> str | None:
    unfit = [type(value) for value in values if value is not _Nothing and not isinstance(value, _TAKEN)]
    if len(unfit) == len(values) and len(set(unfit)) == 1:
        return f"{field} is {_name(unfit[0])} in all samples"
    kinds = [_kind(value) for value in values]
    (usual, _), *others = Counter(kinds).most_common()
    if not others:
        return None
    odd = [f"{name} {kind}" for name, kind in zip(names, kinds, strict=True) if kind != usual]
    more = f" and {len(odd) - _TOLD} more" if len(odd) > _TOLD else ""
    example = names[kinds.index(usual)]
    return f"{field}: {', '.join(odd[:_TOLD])}{more}, but {example} {usual}"


def _kind(value: Any) -> str:
    """Return what a value is, in so far as it must be the same in all samples of a batch."""
    if value is _Nothing:
        return "lacks it"
    if isinstance(value, (torch.Tensor, np.ndarray)):
        kind = "a tensor" if isinstance(value, torch.Tensor) else "an array"
        return f"has {kind} of {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, (bool, int, float, np.generic)):
        return "has a number"
    return f"has {'nothing (None)' if value is None else _name(type(value))}"


def _name(kind: type) -> str:
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"a{'n' * (name[0].lower() in 'aeiou')} {name}"
