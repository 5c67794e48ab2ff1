"""What training on one batch replaces in Lightning."""

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy

from pipeline.training.step.step_compat import share_gradient_memory


def test_gradients_share_the_memory_of_ddps_buckets_unless_the_user_says_otherwise() -> None:
    shared = []
    for strategy in ("ddp", "ddp_find_unused_parameters_true", DDPStrategy(gradient_as_bucket_view=False)):
        made = pl.Trainer(strategy=strategy, accelerator="cpu", logger=False, enable_checkpointing=False)
        share_gradient_memory(made)
        assert isinstance(made.strategy, DDPStrategy)
        shared.append(made.strategy._ddp_kwargs["gradient_as_bucket_view"])
    assert shared == [True, True, False]
