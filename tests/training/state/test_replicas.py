"""What a replica has itself, and what only rank 0 knows."""

import io
from typing import Any

import pytest
import torch

from pipeline.training.state.replicas import filled, replicated, signature, size, without


class Model(torch.nn.Module):
    """A trained, a frozen and a tied weight, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = torch.nn.Linear(3, 2)
        self.tied = self.trained.weight
        self.frozen = torch.nn.Linear(2, 2, bias=False).requires_grad_(False)
        self.norm = torch.nn.BatchNorm1d(2)


def checkpoint(seed: int = 0) -> tuple[Model, dict[str, Any]]:
    torch.manual_seed(seed)
    model = Model()
    optimizer = torch.optim.Adam(each for each in model.parameters() if each.requires_grad)
    model.norm(model.trained(torch.randn(4, 3))).pow(2).sum().backward()
    optimizer.step()
    return model, {
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "callbacks": {"EMA": {"average": torch.ones(3), "steps": 4, "names": ("a", ["b"])}},
        "lists": [torch.zeros(2), {"x": torch.ones(1)}],
    }


def test_trained_weights_and_moments_are_the_replicas_own_buffers_and_all_else_are_not() -> None:
    model, state = checkpoint()
    found = {".".join(map(str, path)) for path in replicated(state, model)}
    names = {"trained.weight", "trained.bias", "tied", "norm.weight", "norm.bias"}
    moments = {f"0.state.{index}.{name}" for index in range(4) for name in ("exp_avg", "exp_avg_sq")}
    assert found == {f"state_dict.{name}" for name in names} | {f"optimizer_states.{name}" for name in moments}


def test_an_average_of_the_weights_in_their_place_is_not_the_replicas_own() -> None:
    model, state = checkpoint()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    averaged = {**state, "state_dict": own, "current_model_state": model.state_dict()}
    found = {path[:2] for path in replicated(averaged, model)}
    assert ("current_model_state", "trained.weight") in found
    assert ("state_dict", "trained.weight") not in found


def test_what_another_node_fills_in_is_the_whole_state_bit_for_bit() -> None:
    model, state = checkpoint()
    twin, other = checkpoint()
    other["callbacks"]["EMA"]["average"] += 1  # what rank 0 says counts
    other["state_dict"]["norm.running_mean"] += 1
    file = io.BytesIO()
    torch.save(without(state, replicated(state, model)), file)
    file.seek(0)
    made = filled(torch.load(file, weights_only=True), replicated(other, twin))
    assert made["state_dict"].keys() == state["state_dict"].keys()
    assert all(torch.equal(value, made["state_dict"][name]) for name, value in state["state_dict"].items())
    assert made["state_dict"]["tied"].data_ptr() == made["state_dict"]["trained.weight"].data_ptr()
    for index, values in state["optimizer_states"][0]["state"].items():
        assert all(
            torch.equal(value, made["optimizer_states"][0]["state"][index][name]) for name, value in values.items()
        )
    assert made["callbacks"]["EMA"]["names"] == ("a", ["b"])
    assert torch.equal(made["callbacks"]["EMA"]["average"], torch.ones(3))


def test_what_travels_is_small() -> None:
    model, state = checkpoint()
    assert size(without(state, replicated(state, model))) < size(state) / 2


def test_a_tensor_that_a_replica_lacks_is_no_silent_gap() -> None:
    model, state = checkpoint()
    with pytest.raises(KeyError):
        filled(without(state, replicated(state, model)), {})


def test_replicas_with_other_tensors_have_other_signatures() -> None:
    model, state = checkpoint()
    twin, same = checkpoint(seed=1)
    assert signature(replicated(state, model)) == signature(replicated(same, twin))
    del same["optimizer_states"][0]["state"][3]
    assert signature(replicated(state, model)) != signature(replicated(same, twin))


def test_tensors_that_share_memory_count_once() -> None:
    base = torch.zeros(100)
    assert size({"a": base, "b": base[10:], "c": [base.view(10, 10)]}) == 400
