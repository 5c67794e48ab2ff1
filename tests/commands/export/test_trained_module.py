"""A model gets the weights of its checkpoint, or says why it cannot."""

from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from torch import nn

from pipeline.commands.export.trained_module import _take_types, _unwrap_compiled, reason
from tests.support.commands import Ended, assert_one_message
from tests.support.exported import of

App = Callable[..., Ended]


def test_a_model_whose_code_has_changed_says_what_does_not_fit(app: App, tmp_path: Path) -> None:
    assert app(*of("Trained"), "--run_dir", tmp_path).status == 0
    saved = yaml.safe_load((tmp_path / "fit.yaml").read_text())
    saved["model"]["class_path"] = "tests.support.exported.Normed"
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(saved))
    ended = app("export", "--run_dir", tmp_path, "--format", "safetensors")
    assert_one_message(ended, "Normed does not fit its own checkpoint")
    assert "Was its code changed" in ended.err


def test_tensors_take_the_type_that_they_have_in_the_checkpoint_and_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    _take_types(model, state)
    assert {each.dtype for each in model.state_dict().values()} == {torch.bfloat16}
    assert model[1].weight is model[0].weight


def test_compiled_parts_get_their_own_names_back() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Sequential(torch.compile(nn.Linear(2, 2))))  # type: ignore[arg-type]
    _unwrap_compiled(model)
    assert list(model.state_dict()) == ["1.0.weight", "1.0.bias"]


def test_a_long_reason_is_cut() -> None:
    assert len(reason(ValueError("x" * 1000))) < 250
    assert reason(ValueError("short")) == "ValueError: short"
