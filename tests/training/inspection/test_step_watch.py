"""What lives, what autograd keeps and what is computed are told apart, and nothing is changed by watching."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.training.inspection.step_watch import KeptTensors, StepWatch, bytes_of, flop_counter, tensors_in

FLOAT = 4


def watched(living: Iterable[Tensor] = ()) -> StepWatch:
    return StepWatch(living, lambda: 0)


def kept(besides: Iterable[Tensor] = ()) -> KeptTensors:
    return KeptTensors(besides, lambda size: None)


def test_the_peak_is_what_lives_at_one_moment() -> None:
    with watched() as watch:
        first = torch.zeros(1000)
        second = first + 1
        del first
        third = second * 2
        del second
    assert watch.now == 1000 * FLOAT
    assert watch.peak == 2000 * FLOAT
    del third
    assert watch.now == 0


def test_what_shares_memory_counts_once() -> None:
    weights = torch.ones(10, 10)
    with watched([weights]) as watch:
        views = [weights[0], weights.t(), weights.reshape(-1), weights.detach()]
        weights.add_(1)
        torch.mul(weights, 2, out=weights)
    assert len(views) == 4
    assert watch.peak == 100 * FLOAT


def test_layers_that_run_one_after_the_other_need_no_memory_together_without_gradients() -> None:
    layers = nn.Sequential(*(nn.Linear(100, 100, bias=False) for _ in range(10)))
    x = torch.zeros(50, 100)
    with torch.no_grad(), watched(layers.parameters()) as watch:
        layers(x)
    assert watch.peak == bytes_of(layers.parameters()) + 2 * 50 * 100 * FLOAT


def test_autograd_keeps_what_the_backward_pass_needs_and_lets_go_of_it() -> None:
    layers = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 1))
    x = torch.randn(32, 4)
    keeps = kept(layers.parameters())
    with keeps:
        loss = layers(x).square().mean()
    # The input, the result of ReLU, which is the next layer's input, and that of the last layer; no weights.
    assert keeps.peak == keeps._now == (32 * 4 + 32 * 64 + 32) * FLOAT
    loss.backward()
    assert keeps._now == 0


def test_what_is_kept_by_several_operations_counts_once() -> None:
    x = torch.randn(100, requires_grad=True)
    keeps = kept()
    with keeps:
        y = x.sin() + x.cos() + x.square() + x.view(10, 10).exp().sum()
    assert keeps.peak == 2 * 100 * FLOAT
    y.sum().backward()
    assert keeps._now == 0


def test_gradients_are_the_same_with_everything_watched() -> None:
    def gradients(watches: bool) -> list[Any]:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2))
        x = torch.randn(5, 3, 8, requires_grad=True)
        counter = flop_counter()
        if watches:
            with counter, kept(layers.parameters()), StepWatch(layers.parameters(), counter.get_total_flops):
                layers(x).square().sum().backward()
        else:
            layers(x).square().sum().backward()
        return [x.grad, *(each.grad for each in layers.parameters())]

    assert all(torch.equal(one, two) for one, two in zip(gradients(True), gradients(False), strict=True))


def test_gradients_of_gradients_go_through_what_is_kept() -> None:
    x = torch.randn(5, requires_grad=True)
    with kept(), watched():
        (first,) = torch.autograd.grad(x.sigmoid().pow(3).sum(), x, create_graph=True)
        first.square().sum().backward()
    expected = x.detach().clone().requires_grad_()
    (first,) = torch.autograd.grad(expected.sigmoid().pow(3).sum(), expected, create_graph=True)
    first.square().sum().backward()
    assert torch.equal(x.grad, expected.grad)


def test_nothing_is_held_once_a_graph_is_gone_without_a_backward_pass() -> None:
    keeps = kept()
    with keeps, watched() as watch:
        y = torch.randn(100, requires_grad=True).exp().exp()
        assert keeps._now == 200 * FLOAT
        del y
    assert keeps._now == 0
    assert watch.now == 0


def test_operations_are_counted_forward_and_backward() -> None:
    layer, counter = nn.Linear(10, 20), flop_counter()
    x = torch.randn(8, 10, requires_grad=True)
    with counter, StepWatch([], counter.get_total_flops) as watch:
        layer(x).sum().backward()
    assert counter.get_total_flops() - watch.backward_flops == 2 * 8 * 10 * 20
    assert watch.backward_flops == 2 * 2 * 8 * 10 * 20


def test_attention_is_counted_on_the_cpu() -> None:
    batch, heads, length, width = 2, 4, 16, 8
    query, key, value = (torch.randn(batch, heads, length, width, requires_grad=True) for _ in range(3))
    counter = flop_counter()
    with counter, StepWatch([], counter.get_total_flops) as watch:
        functional.scaled_dot_product_attention(query, key, value).sum().backward()
    product = 2 * batch * heads * length * length * width
    assert counter.get_total_flops() - watch.backward_flops == 2 * product
    assert watch.backward_flops >= 4 * product


def test_an_operation_of_another_library_is_named_for_its_flops_are_not_known() -> None:
    torch.library.define("inspected::twice", "(Tensor x) -> Tensor")
    torch.library.impl("inspected::twice", "cpu", lambda x: 2 * x)
    with watched() as watch:
        torch.ops.inspected.twice(torch.ones(3))
        torch.ones(3).exp()
    assert watch.uncounted == {"inspected::twice"}


def test_bytes_count_each_memory_once_and_those_of_sparse_tensors() -> None:
    x = torch.zeros(10)
    assert bytes_of([x, x[:5], x.view(2, 5), torch.zeros(3, dtype=torch.float64)]) == 40 + 24
    assert bytes_of([torch.eye(4).to_sparse()]) == 4 * FLOAT + 2 * 4 * 8
    assert bytes_of([torch.zeros(5, device="meta")]) == 20
    assert bytes_of([]) == 0


@pytest.mark.parametrize(
    "value", [{"a": [torch.ones(1), (torch.ones(2), "x")], "b": None}, [torch.ones(1), torch.ones(1)]]
)
def test_tensors_are_found_at_any_depth(value: Any) -> None:
    assert len(list(tensors_in(value))) == 2
