"""The steps of an export: load a checkpoint, find inputs, write a file, compare it with the module, put it in place."""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.checkpoint.commit import CommitRecord, Corrupt
from pipeline.checkpoint.load import load as load_checkpoint
from pipeline.checkpoint.load import select_verified
from pipeline.commands.export import graph_files, tensor_files, trained_module
from pipeline.commands.export.comparison import Difference, difference
from pipeline.commands.export.description import ENDINGS, Description, versions
from pipeline.commands.export.destination import EXPORTS, Destination
from pipeline.commands.export.example_inputs import ExampleInputs, Inputs, find_inputs, run
from pipeline.commands.export.trained_module import TrainedModule
from pipeline.commands.inspection.quantities import in_bytes
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir

_GRAPHS = ("pt2", "onnx")
_SHAPES = "give the shape of what its forward takes, batch first: --input_shape 2,3,224,224"


def export(run_dir: RunDir, asked: argparse.Namespace, destination: Destination | None) -> str:
    """Export a module of a run.

    Args:
        run_dir: The run.
        asked: The flags.
        destination: Where to, None: to the run's own folder.

    Returns:
        What was done, a line each.

    Raises:
        UserError: What the user must change.
        StorageAway: A storage does not answer.
    """
    if asked.format == "onnx":
        graph_files.require_onnx()
    record, _ = select_verified(run_dir, asked.checkpoint)
    command = trained_module.build(asked.run_dir)
    try:
        checkpoint = load_checkpoint(run_dir, record)
    except Corrupt as error:  # since it was selected
        raise UserError(f"checkpoint {record.name} of {run_dir} cannot be read any more: {error}. Try again") from error
    trained = trained_module.load(command, checkpoint, asked.average)
    part = trained.part(asked.submodule)
    inputs, failures = find_inputs(trained, part, asked.input_shape)
    trained.detach()
    if inputs is None and asked.format in _GRAPHS:
        tried = f" (tried: {'; '.join(failures[:4])})" if failures else ""
        raise UserError(
            f"format={asked.format!r}: no inputs are known for {_name(trained, asked)}: neither the run's data nor an "
            f"example_input_array lead to a call of it: {_SHAPES}{tried}"
        )
    description = _describe(run_dir, record, trained, part, asked, inputs)
    if destination is None:
        name = f"{_name(trained, asked)}-step-{record.step:08d}.{ENDINGS[asked.format]}"
        destination = Destination(f"{run_dir.label}/{EXPORTS}/{name}", run_dir)
    with tempfile.TemporaryDirectory(prefix="export-") as folder:
        file = Path(folder, destination.path.rpartition("/")[2])
        compute = _write(part, file, description, inputs, asked)
        compared = _compare(part, compute, inputs, asked)
        done = _place(file, destination, description, asked)
    lines = {
        "model": f"{trained.class_path}{f', its part {asked.submodule}' if asked.submodule else ''}",
        "checkpoint": f"{run_dir.url_of(record.name)}, {record.sha256}",
        "weights": trained.weights.said,
        "inputs": "not known: " + "; ".join(failures[:2] or ["no data"]) if inputs is None else inputs.described(part),
        "tied": ", ".join(f"{name} is {kept}" for name, kept in description.tied.items()),
        "note": "; ".join(trained.notes),
        "compared": compared,
        "file": done,
    }
    return "\n".join(f"{name:12}{text}" for name, text in lines.items() if text)


def _name(trained: TrainedModule, asked: argparse.Namespace) -> str:
    """Return what the file is called: the class, the part, and which weights if that is not the usual choice."""
    parts = [type(trained.model).__name__, *filter(None, [asked.submodule])]
    return ".".join(parts) + ("-current" if trained.weights.kind == "current" else "")


def _describe(
    run_dir: RunDir,
    record: CommitRecord,
    trained: TrainedModule,
    part: nn.Module,
    asked: argparse.Namespace,
    inputs: ExampleInputs | None,
) -> Description:
    return Description(
        run=run_dir.url,
        step=record.step,
        checkpoint=record.name,
        checkpoint_sha256=record.sha256,
        checkpoint_created=record.created,
        class_path=trained.class_path,
        submodule=asked.submodule,
        weights=trained.weights.kind,
        inputs="" if inputs is None else inputs.described(part),
        tied=tensor_files.tied_names(part),
        versions=versions(with_onnx=asked.format == "onnx"),
    )


def _write(
    part: nn.Module, file: Path, description: Description, inputs: ExampleInputs | None, asked: argparse.Namespace
) -> Callable[[Inputs], Any]:
    """Write the file, and return what computes as it says."""
    if asked.format in _GRAPHS:
        assert inputs is not None
        program = graph_files.trace(part, inputs, asked.dynamic_batch)
        write, read = {
            "pt2": (graph_files.write_pt2, graph_files.read_pt2),
            "onnx": (graph_files.write_onnx, graph_files.read_onnx),
        }[asked.format]
        write(program, file, description)
        return read(file)
    written, loaded = {
        "safetensors": (tensor_files.write_safetensors, tensor_files.read_safetensors),
        "state_dict": (tensor_files.write_state_dict, tensor_files.read_state_dict),
    }[asked.format]
    written(part, file, description)
    fresh = loaded(part, file, description)
    difference(part.state_dict(), fresh.state_dict(), exact=True).require_small("the file", "")
    return partial(run, fresh)


def _compare(
    part: nn.Module, compute: Callable[[Inputs], Any], inputs: ExampleInputs | None, asked: argparse.Namespace
) -> str:
    """Compare what the file computes with what the module does, for each of the calls, and say how far they are apart.

    Raises:
        UserError: They differ by more than the tolerance.
    """
    exact = asked.format not in _GRAPHS
    if inputs is None:
        return f"every tensor, bit by bit; not what it computes, for no inputs are known: {_SHAPES}"
    calls = inputs.calls if exact or asked.dynamic_batch else inputs.calls[:1]
    found: list[Difference] = []
    for call in calls:
        expected = run(part, call)
        found.append(difference(expected, compute(call), exact))
        drawn = difference(expected, run(part, call, seed=1), exact=True)
        why = "Its forward draws random numbers also in eval mode" if drawn.where else "Take another --format"
        found[-1].require_small(f"the {asked.format} file", why)
    if not exact and not all(each.numbers for each in found):
        raise UserError(f"format={asked.format!r}: forward of {type(part).__name__} returns no tensors to compare")
    rows = " and ".join(str(len(call.tensors[0])) if call.tensors and call.tensors[0].ndim else "?" for call in calls)
    greatest, allowed = max(each.greatest for each in found), max(each.allowed for each in found)
    tensors = "every tensor, bit by bit; " if exact else ""
    return (
        f"{tensors}{sum(each.numbers for each in found):,} numbers of its outputs for batches of {rows}: greatest "
        f"difference {greatest:.3g}, allowed {allowed:.3g}"
    )


def _place(file: Path, destination: Destination, description: Description, asked: argparse.Namespace) -> str:
    """Put a file in its place, with its description beside it where it holds none; say where it is.

    Raises:
        UserError: Another file is there.
    """
    placed = [(file, destination)]
    if asked.format == "state_dict":
        beside = file.with_name(f"{file.name}.json")
        with open(file, "rb") as content:
            digest = f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"
        beside.write_text(json.dumps({**description.as_dict(), "file_sha256": digest}, indent=2) + "\n")
        placed.append((beside, Destination(f"{destination.url}.json", destination.run)))
    differs = [where.differs(each) for each, where in placed]
    for (each, where), other in zip(placed, differs, strict=True):
        if other and not asked.overwrite:
            where.refuse_another(each)
    for (each, where), other in zip(placed, differs, strict=True):
        if other is not False:
            where.put(each)
    size = in_bytes(file.stat().st_size)
    return f"{destination.url}, {size}{', was there already' if not any(each is not False for each in differs) else ''}"
