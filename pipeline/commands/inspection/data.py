"""`python -m pipeline data`: what the data consist of, and what an epoch's order looks like."""

import json
from pathlib import Path
from typing import Any

from pipeline.commands.inspection import data_report
from pipeline.commands.inspection.asked_devices import AskedDevices
from pipeline.commands.inspection.failures import described
from pipeline.config.parser import CommandLine
from pipeline.data.pictures import Pixels, contact_sheet, has_pictures, pixels_of, png
from pipeline.errors import UserError
from pipeline.training.inspection.data_facts import DataFacts
from pipeline.training.inspection.set_facts import DataQuestion, SetFacts
from pipeline.training.inspection.step_measurement import MEASURING
from pipeline.training.trainer import Trainer


def look_at(command: CommandLine) -> tuple[str, list[str]]:
    """Return what the configured data consist of, and what is wrong with them, one sentence each.

    Raises:
        UserError: There are no data, or a flag is wrong.
        StorageAway: What the data read does not answer.
    """
    asked = command.asked
    _check_flags(asked)
    devices = AskedDevices.of(asked.trainer)
    question = DataQuestion(
        *(devices.world_size, asked.trainer.accumulate_grad_batches, asked.read, asked.samples),
        seed=_seed(asked.seed_everything),
        distributes=asked.trainer.use_distributed_sampler is not False,
    )
    trainer, source = _build(command)
    facts = trainer.data(source, question)
    if not facts.sets and not facts.failures:
        raise UserError(f"{type(source).__name__} brings no data: it has no loaders")
    problems = _problems(facts)
    notes = [] if asked.picture is None else _write_pictures(asked.picture, facts.sets, asked.samples, problems)
    if asked.json:
        return json.dumps(data_report.as_json(facts.sets, problems), indent=2), problems
    return data_report.as_text(facts.sets, question, notes), problems


def _check_flags(asked: Any) -> None:
    problems = [f"{name}={asked[name]} must be >= 0" for name in ("samples", "read") if asked[name] < 0]
    if asked.picture is not None and not Path(asked.picture).absolute().parent.is_dir():
        problems.append(f"picture={asked.picture!r}: there is no folder {Path(asked.picture).parent}: make it first")
    if asked.picture is not None and not asked.samples:
        problems.append("samples=0 leaves no sample for --picture to draw: give at least 1")
    if problems:
        raise UserError(*problems)


def _seed(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _build(command: CommandLine) -> tuple[Trainer, Any]:
    """Return a trainer that is asked for its ranks, and what brings the loaders; a model is built only if that does."""
    if command.asked.data is not None:
        quiet = {**MEASURING, "accelerator": "cpu"}
        return Trainer(**quiet), command.build_data()
    if command.asked.model is None:
        raise UserError("data is missing: name the data to look at, --data <class path> or --config <file>")
    for key, value in {**MEASURING, "accelerator": "cpu"}.items():
        command.asked.trainer[key] = value
    command.build([], lambda: False)
    trainer: Any = command.trainer
    return trainer, command.model


def _problems(facts: DataFacts) -> list[str]:
    """Return what is wrong, each once."""
    found = [f"{name} fails: {described(error)}" for name, error in facts.failures.items()]
    for each in facts.sets:
        found += each.problems
        if each.survey.failures:
            index, error = next(iter(each.survey.failures.items()))
            which = "sample" if each.fields_of == "samples" else "batch"
            count = len(each.survey.failures)
            more = f", the first of {count}" if count > 1 else ""
            found.append(f"{each.name}: {which} {index} cannot be read{more}: {described(error)}")
    return list(dict.fromkeys(found))


def _write_pictures(path: str, sets: list[SetFacts], count: int, problems: list[str]) -> list[str]:
    """Write the pictures of the first samples of each set; return what was written, or why nothing was."""
    pictures: list[Pixels] = []
    names: list[str] = []
    for each in sets:
        if not has_pictures(each.source) or not each.samples:
            continue
        try:
            pictures.append(contact_sheet([pixels_of(each.source, at) for at in range(min(count, each.samples))]))
            names.append(each.name)
        except Exception as error:  # noqa: BLE001 - the user's own method
            problems.append(f"{each.name}: {described(error)}")
    if not pictures:
        return [f"{path} is not written: no dataset here has a method picture(index)."]
    try:
        Path(path).write_bytes(png(contact_sheet(pictures, columns=1, side=4096, enlarged=1)))
    except OSError as error:
        raise UserError(f"picture={path!r} cannot be written: {error.strerror}") from error
    return [f"{path} shows the first samples of {', '.join(names)}, in this order."]
