"""What is built on of Lightning's training loaders is there, and does what it is built on for."""

from typing import Any

from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from pipeline.training import compat
from pipeline.training.loaders import loader_compat
from pipeline.training.trainer import Trainer
from tests.support.models import Regression, Rows


def test_all_that_is_needed_is_there() -> None:
    assert list(compat.missing(loader_compat.MEMBERS)) == []


def test_what_is_iterated_is_not_what_the_user_gave_and_its_progress_can_be_set() -> None:
    given, iterated = DataLoader(Rows(8), batch_size=2), [1, 2, 3]
    ready: list[CombinedLoader] = []
    trainer = Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )

    def replace(combined: CombinedLoader) -> None:
        ready.append(combined)
        loader_compat.iterate_instead(combined, [iterated])

    loader_compat.on_loaders_ready(trainer, replace)
    assert loader_compat.combined_progress(trainer) == (0, None)
    seen: list[Any] = []
    model: Any = Regression()
    model.training_step = lambda batch, batch_idx: seen.append(batch)
    trainer.fit(model, given)
    assert seen == [1, 2, 3] or seen == [1]
    assert trainer.train_dataloader is given
    combined = ready[0]
    iter(combined)
    next(combined)
    assert loader_compat.combined_progress(trainer) == (1, [False])
    loader_compat.set_combined_progress(trainer, 4, [True])
    assert loader_compat.combined_progress(trainer) == (5, [True])
