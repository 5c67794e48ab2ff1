"""The datasets of a DataModule by split, of which one may have several by name."""

import re
from typing import Any

from pipeline.data.seeded import refuse_unsized


def named(split: str, found: Any) -> dict[str, Any]:
    """Return the datasets of a split, each with its name: `val`, or `val.<name>` where there are several."""
    if isinstance(found, dict):
        return {f"{split}.{name}": dataset for name, dataset in found.items()}
    return {} if found is None else {split: found}


def problems_of(datasets: dict[str, Any]) -> list[str]:
    """Return what is wrong with the datasets of all splits, one sentence each."""
    problems = []
    for split, found in datasets.items():
        problems += _names(split, found) if isinstance(found, dict) else []
        refusals = (refuse_unsized(name, dataset) for name, dataset in named(split, found).items())
        problems += [problem for problem in refusals if problem]
    return problems


def _names(split: str, sets: dict[str, Any]) -> list[str]:
    if split != "val":
        return [
            f"data.{split} names {len(sets)} sets, and must be one: what is scored and written belongs to one set. "
            "Name one, and run the command once for each, with a --run_dir or a folder of its own"
        ]
    if not sets:
        return ["data.val={} names no validation set: name at least one, or leave it out"]
    wrong = [name for name in sets if not re.fullmatch(r"[\w-]+", str(name))]
    return [f"data.val has a set {name!r}: a name must be of letters, digits, - and _" for name in wrong]
