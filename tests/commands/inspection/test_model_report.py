"""A measured step reads well, and says nothing that was not measured."""

import json
from typing import Any

import pytest

from pipeline.commands.inspection import model_report
from pipeline.commands.inspection.asked_devices import AskedDevices
from pipeline.commands.inspection.memory_fit import MemoryFit
from pipeline.training.inspection.layer_record import LayerFacts
from pipeline.training.inspection.step_measurement import StepFacts

LAYERS = [
    LayerFacts("", "Net", 30, 30, 1, [2, 4], [2, 1], 500, 64),
    LayerFacts("a", "Sequential", 30, 30, 1, [2, 4], [2, 1], 500, 64),
    LayerFacts("a.b", "Linear", 20, 20, 3, [[2, 4, 4, 4, 4], [2, 1000, 1000, 1000]], [2, 1], 500, 64),
    LayerFacts("head", "Linear", 10, 10),
]
STEP: dict[str, Any] = {
    "batch_size": 2,
    "layers": LAYERS,
    "forward_flops": 500,
    "backward_flops": 1500,
    "parameters": 30,
    "trained": 20,
    "weights": 120,
    "gradients": 80,
    "optimizer": 240,
    "optimizers": ["Adam"],
    "batch": 32,
    "activations": 64,
    "peak": 600,
    "buckets": 80,
}


def report(
    max_depth: int = -1, world_size: int = 1, memory: int | None = 10_000, shares: bool = True, **more: Any
) -> str:
    step = StepFacts("cpu", "32-true", **{**STEP, **more})
    devices = AskedDevices("cpu", world_size, 1, memory, "here", shares)
    return model_report.as_text("Net", step, devices, MemoryFit.of(step, devices), max_depth)


def test_the_text_says_what_was_measured() -> None:
    text = report()
    for words in (
        *("a batch of 2 samples, on cpu", "Linear x3", "2.00 k: 500 forward, 1.50 k backward; 1.00 k for each sample"),
        *("30 parameters, 20 of them trained", "Adam", "kept for the backward pass", "yes: 6.7%", "about 100 samples"),
    ):
        assert words in text, words
    assert "DDP" not in text


@pytest.mark.parametrize(("max_depth", "names"), [(-1, 4), (0, 1), (1, 3), (2, 4)])
def test_layers_are_shown_as_deep_as_asked(max_depth: int, names: int) -> None:
    lines = report(max_depth).splitlines()
    assert sum(line.startswith(("(the model)", "a ", "a.b ", "head ")) for line in lines) == names


def test_lines_are_no_longer_than_the_widest_cells_allow() -> None:
    assert max(map(len, report().splitlines())) <= 100


@pytest.mark.parametrize(("shares", "words"), [(True, "they are views of DDP's buckets"), (False, "of DDP, beside")])
def test_several_processes_have_buckets(shares: bool, words: str) -> None:
    assert words in report(world_size=4, shares=shares)
    assert "for each of 4 processes" in report(world_size=4)


def test_a_step_that_does_not_fit_says_so_loudly() -> None:
    assert "NO: 111.1%" in report(memory=600)
    assert "none: weights, gradients and optimizer alone are too large" in report(memory=100)
    assert "fits             not known: here" in report(memory=None)


def test_what_is_not_measured_is_left_out_and_its_reason_given() -> None:
    bare = {"layers": [], "forward_flops": None, "backward_flops": None, "activations": None, "peak": None}
    text = report(**bare, notes=["Activations are not measured: they hide."])
    assert "they hide" in text
    assert "not known: what a step takes is not measured" in text
    for words in ("FLOPs", "activations", "peak", "largest batch"):
        assert words not in text.replace("Activations are not measured", "")


def test_the_same_goes_through_json() -> None:
    step = StepFacts("cpu", "32-true", **STEP)
    devices = AskedDevices("cpu", 1, 1, 10_000, "here", True)
    found = json.loads(json.dumps(model_report.as_json("Net", step, devices, MemoryFit.of(step, devices), 1)))
    assert (found["model"], found["peak"], found["fit"]["fits"], found["devices"]["memory"]) == (
        "Net",
        600,
        True,
        10_000,
    )
    assert [layer["name"] for layer in found["layers"]] == ["", "a", "head"]
