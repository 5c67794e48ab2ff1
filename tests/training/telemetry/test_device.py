"""What DDP and the model say of a step."""

import lightning.pytorch as pl
import pytest

from pipeline.training.telemetry.device import flops_per_batch, peak_flops, waited_for_gradients
from tests.support.models import Own, Regression


class Counted(Regression):
    flops_per_batch = 12_000


@pytest.mark.parametrize(("value", "flops"), [(5, 5.0), (2.5e12, 2.5e12), (None, 0.0), (-1, 0.0), ("many", 0.0)])
def test_a_model_says_its_operations_by_a_number(value: object, flops: float) -> None:
    model = Counted()
    model.flops_per_batch = value  # type: ignore[assignment]
    assert flops_per_batch(model) == flops
    assert flops_per_batch(Regression()) == 0.0


def test_one_process_on_a_cpu_waits_for_nobody_and_has_no_known_peak() -> None:
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(Regression(), Own())
    assert waited_for_gradients(trainer) is None
    assert peak_flops(trainer) is None
