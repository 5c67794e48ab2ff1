"""What callbacks have frozen, put into eval mode or pruned comes back, unless the model is now built otherwise."""

import torch
from torch.nn.utils import prune

from pipeline.training.state.model_modes import ModelModes
from pipeline.training.trainer import Trainer
from tests.support.models import Backboned


def standing(model: Backboned) -> ModelModes:
    trainer = Trainer(logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    return ModelModes(trainer)


def test_nothing_is_captured_where_no_callback_has_changed_anything() -> None:
    found = standing(Backboned())
    assert found.capture(in_validation=False) == {}
    assert found.capture_masks({}) == {}
    found.restore({})


def test_what_was_unfrozen_put_into_eval_mode_or_tracks_no_statistics_comes_back() -> None:
    model, again = Backboned(), Backboned()
    for each in (model, again):
        each.backbone.requires_grad_(False)
    found = standing(model)
    model.backbone.requires_grad_(True)
    model.norm.eval()
    model.backbone[1].track_running_stats = False  # type: ignore[assignment]
    resumed = standing(again)
    resumed.restore(found.capture(in_validation=False))
    assert all(each.requires_grad for each in again.parameters())
    assert [name for name, each in again.named_modules() if not each.training] == ["norm"]
    assert again.backbone[1].track_running_stats is False


def test_what_the_model_is_built_with_now_wins() -> None:
    model, again = Backboned(), Backboned()
    found = standing(model)
    model.norm.weight.requires_grad_(False)
    again.layers.requires_grad_(False)
    resumed = standing(again)
    resumed.restore(found.capture(in_validation=False))
    frozen = [name for name, each in again.named_parameters() if not each.requires_grad]
    assert frozen == ["layers.0.weight", "layers.0.bias", "norm.weight"]


def test_in_a_validation_the_modes_are_those_before_it() -> None:
    model = Backboned()
    found = standing(model)
    model.norm.eval()
    found.stand()
    model.eval()
    assert found.capture(in_validation=True)["now"]["eval"] == ["norm"]
    assert len(found.capture(in_validation=False)["now"]["eval"]) > 1


def test_masks_come_back_and_a_checkpoint_holds_pruned_weights_under_plain_names() -> None:
    model, again = Backboned(), Backboned()
    found = standing(model)
    prune.l1_unstructured(model.layers[0], "weight", 0.5)  # type: ignore[no-untyped-call]
    state = model.state_dict()
    masks = found.capture_masks(state)
    assert set(state) == set(again.state_dict())
    assert (state["layers.0.weight"] == 0).sum() == 4
    again.load_state_dict(state)
    parameter = again.layers[0].weight
    standing(again).restore_masks(masks)
    assert torch.equal(again.layers[0].weight_orig, model.layers[0].weight_orig)  # type: ignore[arg-type]
    assert torch.equal(again.layers[0].weight, state["layers.0.weight"])
    assert again.layers[0].weight_orig is parameter, "the optimizer's parameter is the same one"
