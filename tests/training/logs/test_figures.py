"""How far a run is reads well, with what is known."""

from dataclasses import replace

import pytest

from pipeline.training.logs.figures import Figures, rounded

TRAINING = Figures(
    *("training", 3, 20, 123, 400, 3, 20, 0.3075, {"train_loss": 0.05123456, "val_loss": 0.0381}),
    *(15_120.3, 236.2, 80.4, False, 120, 2),
)
TESTING = Figures("testing", None, None, 400, None, 120, 360, 1 / 3, {}, None, 75.0, 3.2)


def test_a_line_holds_all_that_is_known() -> None:
    assert TRAINING.line() == (
        "epoch 3/20: step 123/400 (31 %), train_loss 0.0512346, val_loss 0.0381, 15,120 samples/s, 1 min 20 s left"
    )
    assert TESTING.line() == "testing: batch 120/360 (33 %), 75 batches/s, 3.2 s left"
    assert TRAINING.line("epoch 3/20 ended").startswith("epoch 3/20 ended: step 123/400")


def test_a_line_leaves_out_what_is_not_known() -> None:
    unknown = {"epochs": None, "steps": None, "share": None, "samples_per_second": None, "batches_per_second": None}
    assert replace(TRAINING, **unknown, seconds_left=None, values={}).line() == "epoch 3: step 123"
    assert replace(TESTING, batches=None, share=None, seconds_left=None).line() == "testing: batch 120, 75 batches/s"


def test_a_validation_in_the_midst_of_training_names_its_epoch() -> None:
    assert (
        replace(TRAINING, stage="validating", values={}).line().startswith("epoch 3/20, validating: batch 3/20 (31 %)")
    )


def test_a_save_that_is_under_way_is_told() -> None:
    assert replace(TRAINING, saving=True).line().endswith("1 min 20 s left, saving a checkpoint")


def test_the_fields_are_the_figures_without_those_that_are_not_known() -> None:
    assert TRAINING.fields() == {
        "stage": "training",
        "epoch": 3,
        "epochs": 20,
        "step": 123,
        "steps": 400,
        "batch": 3,
        "batches": 20,
        "share": 0.3075,
        "values": {"train_loss": 0.05123456, "val_loss": 0.0381},
        "samples_per_second": 15_120.3,
        "batches_per_second": 236.2,
        "seconds_left": 80.4,
        "saving": False,
        "checkpoint": 120,
        "attempt": 2,
    }
    assert "epoch" not in TESTING.fields()
    assert TESTING.fields()["share"] == 0.333333


@pytest.mark.parametrize(("number", "text"), [(15_120.3, "15,120"), (10.4, "10"), (3.44, "3.4"), (0.0123, "0.012")])
def test_rates_are_read_by_people(number: float, text: str) -> None:
    assert rounded(number) == text
