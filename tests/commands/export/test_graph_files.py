"""Graphs take batches of any size, of one if that is all they can; what is missing for ONNX is told."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.commands.export.example_inputs import ExampleInputs, Inputs
from pipeline.commands.export.graph_files import read_onnx, read_pt2, require_onnx, trace, write_onnx, write_pt2
from pipeline.errors import UserError
from pipeline.training.inspection.step_watch import tensors_in
from tests.support.exported import SAID


class Careless(nn.Module):
    """Does not use all that it is given."""

    def forward(self, x: Tensor, unused: Tensor, scale: float | None = None) -> Tensor:
        return x * 2


class Fixed(nn.Module):
    """Knows one size of its batches."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, -1)[:, :2] + 1 if x.shape[0] == 4 else x.sum()[None]


class Pair(nn.Module):
    """Takes a tensor, a mapping and a number; returns several tensors, some nested."""

    def forward(self, x: Tensor, more: dict[str, Tensor], scale: float = 2.0) -> dict[str, Any]:
        return {"a": x * scale, "b": [more["y"].sum(1), x + more["y"]]}


def calls(*shape: int) -> ExampleInputs:
    return ExampleInputs([Inputs((torch.randn(rows, *shape),), {}) for rows in (4, 3)], "made here")


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_nested_arguments_and_outputs_survive_for_every_size_of_the_batch(tmp_path: Path, kind: str) -> None:
    made = [Inputs((torch.randn(n, 3),), {"more": {"y": torch.randn(n, 3)}}) for n in (4, 3, 9)]
    program = trace(Pair(), ExampleInputs(made[:2], "made here"), dynamic=True)
    write, read = {"pt2": (write_pt2, read_pt2), "onnx": (write_onnx, read_onnx)}[kind]
    write(program, tmp_path / "x", SAID)
    found = read(tmp_path / "x")(made[2])
    expected = Pair()(*made[2].args, **made[2].kwargs)
    first = found["a"] if kind == "pt2" else found[0]
    torch.testing.assert_close(first, expected["a"])


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_an_argument_that_is_not_used_is_taken_all_the_same(tmp_path: Path, kind: str) -> None:
    made = [Inputs((torch.randn(n, 3), torch.randn(n, 2)), {"scale": None}) for n in (4, 3)]
    program = trace(Careless(), ExampleInputs(made, "made here"), dynamic=True)
    write, read = {"pt2": (write_pt2, read_pt2), "onnx": (write_onnx, read_onnx)}[kind]
    write(program, tmp_path / "x", SAID)
    (found,) = tensors_in(read(tmp_path / "x")(made[1]))
    torch.testing.assert_close(found, made[1].args[0] * 2)


def test_a_module_of_one_batch_size_is_told_the_flag_for_that() -> None:
    with pytest.raises(UserError, match=r"for batches of any size.*--dynamic_batch false"):
        trace(Fixed(), calls(2), dynamic=True)
    assert trace(Fixed(), calls(2), dynamic=False) is not None


def test_what_onnx_needs_and_is_not_there_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    class Without(PathFinder):
        @classmethod
        def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
            return None if fullname in ("onnx", "onnxscript") else super().find_spec(fullname, path, target)

    require_onnx()
    monkeypatch.setattr(sys, "meta_path", [Without if each is PathFinder else each for each in sys.meta_path])
    for name in ("onnx", "onnxscript"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UserError, match=r"needs onnx, onnxscript: pip install 'torchx-lightning-pipeline\[onnx\]'"):
        require_onnx()
