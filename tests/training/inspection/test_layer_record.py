"""Each layer's sizes, operations and calls are its own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.training.inspection.layer_record import LayerFacts, LayerRecord, sizes
from pipeline.training.inspection.step_watch import KeptTensors, flop_counter


def recorded(model: nn.Module, *batch: Any, **named: Any) -> dict[str, LayerFacts]:
    """The layers of a model after one call."""
    counter = flop_counter()
    record = LayerRecord(model, counter.get_total_flops)
    with counter, record, KeptTensors(model.parameters(), record.kept):
        model(*batch, **named)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return {layer.name: layer for layer in record.facts()}


def test_sizes_operations_and_what_is_kept_add_up_the_tree() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 2)))
    layers = recorded(model, torch.randn(16, 4))
    assert (layers["0"].input, layers["0"].output, layers["0"].flops) == ([16, 4], [16, 8], 2 * 16 * 4 * 8)
    assert (layers["1.1"].input, layers["1.1"].output, layers["1.1"].flops) == ([16, 8], [16, 2], 2 * 16 * 8 * 2)
    assert layers["1"].flops == layers["1.0"].flops + layers["1.1"].flops
    assert layers[""].flops == layers["0"].flops + layers["1"].flops
    assert layers[""].kept == layers["0"].kept + layers["1"].kept == (16 * 4 + 16 * 8) * 4
    assert [layers[name].parameters for name in ("", "0", "1", "1.0")] == [58, 40, 18, 0]


def test_a_layer_that_is_called_again_sums_its_operations_up() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.unused = nn.Linear(4, 4), nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x)[:2])

    layers = recorded(Twice(), torch.zeros(8, 4))
    assert (layers["layer"].calls, layers["layer"].input) == (2, [8, 4])
    assert layers["layer"].flops == 2 * (8 + 2) * 4 * 4
    assert (layers["unused"].calls, layers["unused"].input, layers["unused"].parameters) == (0, None, 2)


def test_frozen_parameters_are_told_from_trained_ones() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    assert (recorded(model, torch.zeros(1, 3))[""].parameters, recorded(model, torch.zeros(1, 3))[""].trained) == (8, 6)


def test_a_layer_whose_error_is_caught_leaves_the_others_right() -> None:
    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrong, self.right = nn.Sequential(nn.Linear(3, 3)), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.wrong(x)
            except RuntimeError:
                return self.right(x)

    layers = recorded(Tries(), torch.zeros(2, 4))
    assert (layers["wrong"].output, layers["wrong"].flops) == (None, 0)
    assert (layers["right"].flops, layers[""].flops) == (2 * 2 * 4 * 4,) * 2


def test_lazy_layers_are_counted_once_they_are_made() -> None:
    assert recorded(nn.Sequential(nn.LazyLinear(3)), torch.zeros(2, 5))["0"].parameters == 18


def test_a_scripted_layer_hinders_nothing() -> None:
    model = nn.Sequential(torch.jit.script(nn.Linear(4, 4)), nn.Linear(4, 2))
    assert recorded(model, torch.zeros(2, 4))["1"].output == [2, 2]


def test_arguments_by_name_have_sizes() -> None:
    class Named(nn.Module):
        def forward(self, *, x: Tensor) -> dict[str, Tensor]:
            return {"a": x, "b": x[0]}

    layer = recorded(Named(), x=torch.zeros(2, 3))[""]
    assert (layer.input, layer.output) == ([2, 3], [[2, 3], [3]])


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (torch.zeros(2, 3), [2, 3]),
        ((torch.zeros(2), 5, "x"), [2]),
        ([torch.zeros(2), [torch.zeros(1), torch.zeros(3)]], [[2], [[1], [3]]]),
        ("text", None),
        ((), None),
        (torch.tensor(1.0), []),
    ],
)
def test_sizes_of_anything_that_holds_tensors(value: Any, found: Any) -> None:
    assert sizes(value) == found
