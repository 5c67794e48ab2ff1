"""What one training step takes, as text and for machines."""

from dataclasses import asdict
from typing import Any

from pipeline.commands.inspection.asked_devices import AskedDevices
from pipeline.commands.inspection.memory_fit import MemoryFit
from pipeline.commands.inspection.quantities import in_bytes, shortened
from pipeline.commands.table import table
from pipeline.training.inspection.layer_record import LayerFacts
from pipeline.training.inspection.step_measurement import StepFacts

_WIDEST = 24
"""Characters of a cell of sizes; more are cut off."""


def as_json(name: str, step: StepFacts, devices: AskedDevices, fit: MemoryFit, max_depth: int) -> dict[str, Any]:
    """Return everything that `as_text` says, for JSON. Memory is in bytes."""
    shown = [asdict(layer) for layer in step.layers if _is_shown(layer, max_depth)]
    return {"schema": 1, "model": name, **asdict(step), "layers": shown, "devices": asdict(devices), "fit": asdict(fit)}


def as_text(name: str, step: StepFacts, devices: AskedDevices, fit: MemoryFit, max_depth: int) -> str:
    """Return what a step takes, to be read by people.

    Args:
        name: Of the model's class.
        step: As measured.
        devices: That are asked for.
        fit: Of the one into the others.
        max_depth: Levels of nested layers to show; -1 shows all.
    """
    size = "a batch" if step.batch_size is None else f"a batch of {_samples(step.batch_size)}"
    lines = [f"{name}: a training step with the first of its batches, {size}, on {step.device}, {step.precision}", ""]
    layers = [layer for layer in step.layers if _is_shown(layer, max_depth)]
    if layers:
        lines += [*_layer_table(layers), ""]
        lines += ["FLOPs are those of the forward pass; kept is what autograd keeps for the backward pass.", ""]
    lines += [*_flops(step), *_memory(step, devices, fit), "", *_fit(step, devices, fit)]
    notes = [*step.notes, *([devices.absent] if devices.absent else [])]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _is_shown(layer: LayerFacts, max_depth: int) -> bool:
    return max_depth == -1 or (layer.name.count(".") + 1 if layer.name else 0) <= max_depth


def _layer_table(layers: list[LayerFacts]) -> list[str]:
    rows = [["layer", "type", "parameters", "input", "output", "FLOPs", "kept"]]
    for layer in layers:
        called = layer.calls > 0
        type_ = layer.type if layer.calls < 2 else f"{layer.type} x{layer.calls}"
        numbers = [shortened(layer.flops) if called else "", in_bytes(layer.kept) if called else ""]
        sizes = [_sizes(layer.input), _sizes(layer.output)]
        rows.append([layer.name or "(the model)", type_, f"{layer.parameters:,}", *sizes, *numbers])
    return table(rows, left=("layer", "type", "input", "output"))


def _sizes(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def _flops(step: StepFacts) -> list[str]:
    if step.forward_flops is None or step.backward_flops is None:
        return []
    total = step.forward_flops + step.backward_flops
    parts = f"{shortened(step.forward_flops)} forward, {shortened(step.backward_flops)} backward"
    each = f"; {shortened(total / step.batch_size)} for each sample" if step.batch_size else ""
    lines = [_line("FLOPs of a step", f"{shortened(total)}: {parts}{each}")]
    return [*lines, _line("", "of matrix products, convolutions and attention, of one process"), ""]


def _memory(step: StepFacts, devices: AskedDevices, fit: MemoryFit) -> list[str]:
    trained = "all trained" if step.trained == step.parameters else f"{step.trained:,} of them trained"
    gradients = ""
    if devices.world_size > 1:
        gradients = "they are views of DDP's buckets" if devices.shares_gradients else ""
    lines = [
        "memory of a process",
        _line("  weights", f"{in_bytes(step.weights):>9}  {step.parameters:,} parameters, {trained}"),
        _line("  buffers", f"{in_bytes(step.buffers):>9}"),
        _line("  gradients", f"{in_bytes(step.gradients):>9}  {gradients}".rstrip()),
        _line("  optimizer", f"{in_bytes(step.optimizer):>9}  {', '.join(step.optimizers) or 'none'}"),
        _line("  batch", f"{in_bytes(step.batch):>9}"),
    ]
    if step.activations is not None:
        lines.append(_line("  activations", f"{in_bytes(step.activations):>9}  kept for the backward pass"))
    if fit.buckets:
        lines.append(_line("  buckets", f"{in_bytes(fit.buckets):>9}  of DDP, beside the gradients"))
    if fit.needed is not None:
        lines.append(_line("  peak", f"{in_bytes(fit.needed):>9}  at one moment, temporary results among it"))
    return lines


def _fit(step: StepFacts, devices: AskedDevices, fit: MemoryFit) -> list[str]:
    asked = f"{devices.world_size} process{'es' * (devices.world_size > 1)}"
    if fit.usable is None:
        return [_line("fits", f"not known: {devices.source}")]
    place = (
        f"{in_bytes(devices.memory or 0)} for each of {asked}"
        if devices.world_size > 1
        else in_bytes(devices.memory or 0)
    )
    if fit.fits is None or fit.needed is None:
        return [_line("fits", f"not known: what a step takes is not measured ({place}, {devices.source})")]
    share = max(0.001, fit.needed / fit.usable)
    verdict = "yes" if fit.fits else "NO"
    lines = [_line("fits", f"{verdict}: {share:.1%} of what can be used of {place} ({devices.source})")]
    if fit.largest_batch is not None and step.batch_size:
        lines.append(_line("largest batch", _largest(fit.largest_batch)))
    return lines


def _largest(samples: int) -> str:
    if not samples:
        return "none: weights, gradients and optimizer alone are too large"
    return f"about {_samples(samples)} for each process, if memory grows in step with the batch"


def _samples(count: int) -> str:
    return f"{count:,} sample{'s' * (count != 1)}"


def _line(name: str, text: str) -> str:
    return f"{name:17}{text}"
