"""What imports have taken from the environment or by chance is a worker's own."""

import numpy as np
import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torchmetrics.utilities import prints

from pipeline.training.forked import renew_imports


def test_a_forked_worker_knows_its_rank_and_draws_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    monkeypatch.setattr(prints.rank_zero_only, "rank", 0)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    state = np.random.get_state()
    try:
        np.random.seed(0)
        renew_imports()
        drawn = np.random.rand()
        np.random.seed(0)
        assert drawn != np.random.rand()
    finally:
        np.random.set_state(state)
    assert rank_zero_only.rank == 5
    assert prints.rank_zero_only.rank == 1
