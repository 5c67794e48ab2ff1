"""What data consist of, as text of 80 columns and for machines."""

import textwrap
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from pipeline.commands.inspection.quantities import number
from pipeline.commands.table import table
from pipeline.data.sample_fields import leaves
from pipeline.training.inspection.set_facts import DataQuestion, FirstBatches, SetFacts

_WIDTH = 78
"""Of a line, without its indentation."""
_INDENT = 16
"""Columns before the text of a line."""
_CLASSES = 20
"""The most classes that are listed."""
_INDICES = 8
"""Of each batch that is shown."""
_TOGETHER = "\N{NO-BREAK SPACE}"
"""A space at which no line is broken."""
_LONGEST_NAME = 20
_VALUES = 6
"""Of each field of a sample that is shown."""


def as_json(sets: list[SetFacts], problems: list[str]) -> dict[str, Any]:
    """Return everything that `as_text` says, for JSON."""
    return {"schema": 1, "sets": [_set_as_json(each) for each in sets], "problems": problems}


def _set_as_json(facts: SetFacts) -> dict[str, Any]:
    names = ("name", "dataset", "samples", "batch_size", "batches", "world_size", "order", "problems")
    survey = facts.survey
    return {
        **{name: getattr(facts, name) for name in names},
        "first_batches": [asdict(each) for each in facts.first_batches],
        "read": survey.fields.samples,
        "read_all": survey.whole,
        "fields_of": facts.fields_of,
        "fields": survey.fields.facts(),
        "first_samples": {str(at): dict(_values(sample)) for at, sample in survey.first.items()},
    }


def as_text(sets: list[SetFacts], asked: DataQuestion, notes: list[str]) -> str:
    """Return what the sets consist of, to be read by people.

    Args:
        sets: In the order in which they are shown.
        asked: What was asked of each.
        notes: What else is to be said, below.
    """
    ranks = f"{asked.world_size} rank{'s' * (asked.world_size > 1)}"
    parts = [f"data for {ranks} (trainer.devices x trainer.num_nodes)", *map("\n".join, map(_set, sets))]
    return "\n\n".join([*parts, *notes])


def _set(facts: SetFacts) -> list[str]:
    lines: list[str] = []
    if facts.samples is not None:
        lines.append(_line("samples", f"{facts.samples:,}"))
    if facts.batches is not None:
        size = "" if facts.batch_size is None else f" of {facts.batch_size:,} sample{'s' * (facts.batch_size != 1)}"
        each = f" on each of {facts.world_size} ranks" if facts.world_size > 1 else ""
        lines.append(_line("batches", f"{facts.batches:,}{size}{each}, in an epoch"))
    lines += [line for at, text in enumerate(facts.order) for line in _wrapped("" if at else "order", text)]
    lines += [_order(each) for each in facts.first_batches]
    hidden = facts.world_size - len({each.rank for each in facts.first_batches})
    if hidden and facts.first_batches:
        lines.append(_line("", f"and so on: {hidden} more rank{'s' * (hidden > 1)}"))
    lines += [*_fields(facts), *_first_samples(facts)]
    return [f"{facts.name}: {facts.dataset}", *(f"  {line}".rstrip() for line in lines)]


def _order(order: FirstBatches) -> str:
    batches = [" ".join(map(str, each[:_INDICES])) + " ..." * (len(each) > _INDICES) for each in order.batches]
    return _line(f"epoch {order.epoch} rank {order.rank}", _cut(" | ".join(batches)))


def _fields(facts: SetFacts) -> list[str]:
    survey, fields = facts.survey, facts.survey.fields.facts()
    if not fields:
        return []
    count = survey.fields.samples
    if facts.samples is None:
        how = f"of {'all' if survey.whole else 'the first'} {count:,} {facts.fields_of}"
    else:
        how = f"of all {count:,} samples" if survey.whole else f"of {count:,} samples, spread evenly over the set"
    lines = ["", _line("fields", how)]
    rows = [["field", "type", "shape", "min", "max", "mean", "NaN", "inf"], *map(_field_row, fields)]
    used = [at for at in range(len(rows[0])) if at < 2 or any(row[at] for row in rows[1:])]
    shown = table([[row[at] for at in used] for row in rows], left=("field", "type", "shape"))
    lines += [f"  {line}" for line in shown]
    lines += [line for field in fields for line in _classes(field)]
    partly = [field for field in fields if field["samples"] < count]
    return [*lines, *(_line("", f"{_name(field)}: in {field['samples']:,} of {count:,}") for field in partly)]


def _name(field: dict[str, Any]) -> str:
    return _cut(field["field"] or "sample", _LONGEST_NAME)


def _field_row(field: dict[str, Any]) -> list[str]:
    kind = field.get("dtype") or field["type"]
    shape = field.get("shape", "")
    if isinstance(shape, list):
        shape = "x".join(str(size) if isinstance(size, int) else f"{size[0]}..{size[1]}" for size in shape) or "scalar"
    elif "length" in field:
        low, high = field["length"]
        shape = f"{low}..{high} long" if low != high else f"{low} long"
    ranges = [number(field[name]) if name in field else "" for name in ("min", "max", "mean")]
    return [
        _name(field),
        kind,
        shape,
        *ranges,
        *(f"{field[name]:,}" if field.get(name) else "" for name in ("nan", "inf")),
    ]


def _classes(field: dict[str, Any]) -> list[str]:
    classes: dict[str, int] = field.get("classes", {})
    if not classes:
        return []
    name, distinct = f"  {_name(field)}", field["distinct"]
    if distinct > _CLASSES:
        same = len(set(classes.values())) == 1
        often = "" if same else ", most often " + _listed(sorted(classes.items(), key=lambda each: -each[1])[:_VALUES])
        return _wrapped(name, f"{distinct:,} different values{often}")
    return _wrapped(name, f"{distinct} class{'es' * (distinct > 1)}: {_listed(list(classes.items()))}")


def _listed(classes: list[tuple[str, int]]) -> str:
    return ", ".join(f"{_cut(value, 32)}: {count:,}".replace(" ", _TOGETHER) for value, count in classes)


def _first_samples(facts: SetFacts) -> list[str]:
    if not facts.survey.first:
        return []
    lines = ["", _line("first samples" if facts.fields_of == "samples" else "first batch", "")]
    for index, sample in facts.survey.first.items():
        shown = "  ".join(f"{path} {text}".strip() for path, text in _values(sample))
        lines.append(_line(f"  {index}", _cut(shown)))
    return [line.rstrip() for line in lines]


def _values(sample: Any) -> list[tuple[str, str]]:
    """Return the fields of a sample with the beginning of each."""
    return [(path, _beginning(value)) for path, value in leaves(sample)][:_CLASSES]


def _beginning(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.is_complex():
            return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        numbers = [
            number(each) if value.dtype.kind != "b" else str(each) for each in value.reshape(-1)[:_VALUES].tolist()
        ]
        return " ".join(numbers) + " ..." * (value.size > _VALUES)
    if isinstance(value, float):
        return number(value)
    return _cut(
        repr(value) if isinstance(value, (str, bytes, int, bool, type(None))) else f"<{type(value).__name__}>", 40
    )


def _cut(text: str, width: int = _WIDTH - _INDENT) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _line(name: str, text: str) -> str:
    return f"{name:{_INDENT}}{text}" if len(name) < _INDENT else f"{name} {text}"


def _wrapped(name: str, text: str) -> list[str]:
    first, *rest = [each.replace(_TOGETHER, " ") for each in textwrap.wrap(text, _WIDTH - _INDENT)]
    return [_line(name, first), *(_line("", each) for each in rest)]
