"""Lightning's transformer on sequences of the project's own."""

import torch

from pipeline.examples.digits import DigitTokens
from pipeline.examples.language_model import LanguageModel


def test_each_sequence_has_a_loss_of_its_own() -> None:
    torch.manual_seed(0)
    tokens = torch.stack([DigitTokens("val")[index][0][:9] for index in range(3)])
    model = LanguageModel(vocab_size=17).eval()
    model.log = lambda *_, **__: None
    together = model.test_step([tokens], 0)["loss"]
    alone = torch.cat([model.test_step([each[None]], 0)["loss"] for each in tokens])
    assert together.shape == (3,)
    torch.testing.assert_close(together, alone)


def test_nothing_is_downloaded() -> None:
    LanguageModel(vocab_size=17).prepare_data()
