"""Files of weights hold each tensor once, are the same bytes each time, and fill a module that has none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.commands.export.tensor_files import (
    read_safetensors,
    read_state_dict,
    tied_names,
    write_safetensors,
    write_state_dict,
)
from pipeline.errors import UserError
from tests.support.exported import SAID


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


def test_only_names_of_the_very_same_memory_are_tied() -> None:
    model = tied()
    assert tied_names(model) == {"1.weight": "0.weight"}
    whole = torch.arange(4.0)
    model.register_buffer("piece", whole[:2])
    model.register_buffer("all", whole)
    assert tied_names(model) == {"1.weight": "0.weight"}


@pytest.mark.parametrize(
    ("write", "read"), [(write_safetensors, read_safetensors), (write_state_dict, read_state_dict)]
)
def test_what_is_read_back_is_what_was_written(tmp_path: Path, write: Any, read: Any) -> None:
    model = tied()
    said = replace(SAID, tied=tied_names(model))
    write(model, tmp_path / "one", said)
    found = read(model, tmp_path / "one", said)
    assert found is not model
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in found.state_dict().items())
    (tmp_path / "again").mkdir()
    write(model, tmp_path / "again" / "one", said)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "again" / "one").read_bytes()


def test_a_tensor_that_the_file_lacks_is_noticed(tmp_path: Path) -> None:
    model = tied()
    write_safetensors(model, tmp_path / "one", replace(SAID, tied=tied_names(model)))
    assert load_file(tmp_path / "one").keys() == {"0.weight", "0.bias", "1.bias"}
    with pytest.raises(RuntimeError, match="Missing key"):
        read_safetensors(model, tmp_path / "one", SAID)


def test_a_state_that_would_execute_code_when_it_is_loaded_is_refused(tmp_path: Path) -> None:
    class Own(nn.Linear):
        def get_extra_state(self) -> Any:
            return tmp_path

    with pytest.raises(UserError, match=r"_extra_state cannot be loaded again without executing pickled code"):
        write_state_dict(Own(2, 2), tmp_path / "x", SAID)


@pytest.mark.parametrize("write", [write_safetensors, write_state_dict])
def test_a_module_without_weights_is_nothing_to_export(tmp_path: Path, write: Any) -> None:
    with pytest.raises(UserError, match="ReLU has no weights"):
        write(nn.ReLU(), tmp_path / "x", SAID)
