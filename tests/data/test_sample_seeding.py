"""What is left out of seeding each sample is what nobody sees: all numbers are those of seeded samples."""

import pickle
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, Dataset

from pipeline.data import sample_seeding
from pipeline.data.sampler import Batches, PositionedSampler
from pipeline.data.seeded import SeededCollate, SeededDataset, sample_seeds

SAMPLES = 600
LATE = 400
"""A sample after those that show from which generators a dataset draws."""

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def restored() -> float:
    with torch.random.fork_rng(devices=[]):
        return torch.rand(()).item()


def isolated() -> float:
    with isolate_rng(include_cuda=False):
        return random.random() + float(np.random.random())


def by_numpys_state() -> float:
    state = np.random.get_state()
    drawn = float(np.random.random())
    np.random.set_state(state)
    return drawn


def by_pythons_state() -> float:
    state = random.getstate()
    drawn = random.random()
    random.setstate(state)
    return drawn


DRAWS: dict[str, Callable[[], float]] = {
    "nothing": lambda: 0.0,
    "torch": lambda: torch.rand(()).item(),
    "torch, normal": lambda: torch.randn(()).item(),
    "numpy": lambda: float(np.random.random()),
    "numpy, normal": lambda: float(np.random.randn()),
    "python": random.random,
    "python, normal": lambda: random.gauss(0, 1),
    "two of them": lambda: float(np.random.random()) + random.random(),
    "torch's seed": lambda: float(torch.initial_seed() % 1000),
    "torch, put back": restored,
    "all, put back": isolated,
    "numpy, put back": by_numpys_state,
    "python, put back": by_pythons_state,
}


class Drawing(Dataset[Any]):
    """Draws in some samples."""

    def __init__(self, draw: Callable[[], float], first: int, every: int = 1) -> None:
        self.draw, self.first, self.every = draw, first, every
        self.fetched: list[int] = []

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[int, float]:
        self.fetched.append(index)
        draws = index >= self.first and index % self.every == 0
        return index, self.draw() if draws else 0.0


def seeded_by_hand(dataset: Any, index: int) -> Any:
    (seed,) = sample_seeds(7, 0, [index]).tolist()
    torch.manual_seed(seed)
    np.random.seed(seed >> 32)
    random.seed(seed)
    return dataset[index]


def in_order(dataset: Any, workers: int = 0) -> list[Any]:
    seeded = SeededDataset(dataset, 7)
    batches = Batches(PositionedSampler(dataset, shuffle=False), 16)
    loader = DataLoader(
        seeded,
        batch_sampler=batches,
        collate_fn=SeededCollate(list, seeded),
        num_workers=workers,
        generator=torch.Generator(),
    )
    return [tuple(sample) for batch in loader for sample in batch]


def states() -> list[Any]:
    kind, words, *rest = np.random.get_state()  # type: ignore[misc]
    return [torch.get_rng_state().tolist(), kind, words.tolist(), rest, random.getstate()]


@pytest.mark.parametrize("first", [0, LATE], ids=["always", "late"])
@pytest.mark.parametrize("kind", DRAWS)
def test_each_sample_draws_what_it_would_with_all_generators_seeded(kind: str, first: int) -> None:
    dataset = Drawing(DRAWS[kind], first, every=1 if first == 0 else 3)
    reference = [seeded_by_hand(dataset, index) for index in range(SAMPLES)]
    np.random.randn()  # a second normal number waits
    random.gauss(0, 1)
    torch.randn(())
    before = states()
    dataset.fetched.clear()
    assert in_order(dataset) == reference
    assert states() == before
    times = Counter(dataset.fetched)
    assert len(times) == SAMPLES
    # The batch in which the first draw came too late to be seen in time; two generators may show one after the other.
    again = {index for index, count in times.items() if count > 1}
    assert again <= (set(range(LATE, LATE + 16)) if first and kind != "nothing" else set())


@pytest.mark.parametrize("kind", ["nothing", "torch", "python, normal"])
def test_workers_draw_the_same(kind: str) -> None:
    dataset = Drawing(DRAWS[kind], LATE, every=3)
    assert in_order(dataset, workers=2) == in_order(dataset)


def test_a_dataset_that_says_that_it_is_not_deterministic_is_fetched_once_whenever_it_draws() -> None:
    dataset = Drawing(DRAWS["two of them"], LATE)
    reference = [seeded_by_hand(dataset, index) for index in range(SAMPLES)]
    dataset.fetched.clear()
    dataset.deterministic = False  # type: ignore[attr-defined]
    assert in_order(dataset) == reference
    assert dataset.fetched == list(range(SAMPLES))


def test_an_error_after_a_late_draw_is_that_of_the_seeded_sample() -> None:
    def unlucky() -> float:
        raise ValueError(str(torch.randint(10**9, ()).item()))

    dataset = Drawing(unlucky, LATE)
    with pytest.raises(ValueError, match=r"\d") as expected:
        seeded_by_hand(dataset, LATE)
    before = states()
    with pytest.raises(ValueError, match=f"^{expected.value}") as raised:
        in_order(dataset)
    assert raised.value.__notes__ == [f"raised by Drawing[{LATE}]"]
    assert states() == before


def test_what_was_seen_of_a_dataset_goes_with_it_to_a_process_that_is_spawned() -> None:
    seeded = SeededDataset(list(range(SAMPLES)), 7)
    seeded.__getitems__(list(range(300)))
    again = pickle.loads(pickle.dumps(seeded))
    assert again.__getitems__([1, 2]) == [1, 2]


def test_training_that_draws_between_batches_keeps_its_numbers() -> None:
    def trained(fetches: bool) -> list[float]:
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(3)
        seeded = SeededDataset(Drawing(DRAWS["all, put back"], 0), 7)
        found = []
        for step in range(40):
            if fetches:
                seeded.__getitems__(list(range(10 * step, 10 * step + 10)))
            found += [float(np.random.randn()), random.gauss(0, 1), torch.randn(()).item()]
        return found

    assert trained(fetches=True) == trained(fetches=False)


def test_every_draw_shows_in_the_mark_of_its_generator() -> None:
    own = torch.Generator()
    torchs = sample_seeding.torch_marks(own)
    assert isinstance(torchs(), list), "the words of torch's generator are not found in its memory any more"
    _, numpys, pythons = (generator.mark for generator in sample_seeding._GENERATORS)
    float64 = torch.float64
    for mark, draws in (
        (torchs, [lambda: torch.rand(1, generator=own), lambda: torch.rand(624, generator=own)]),
        (torchs, [lambda: torch.randn((), generator=own)] * 3 + [lambda: torch.randperm(3, generator=own)]),
        (torchs, [lambda: torch.randn((), generator=own, dtype=float64)] * 3 + [lambda: own.manual_seed(1)]),
        (numpys, [np.random.random, lambda: np.random.random(312), lambda: np.random.bytes(1)]),
        (numpys, [np.random.randn] * 3 + [lambda: np.random.seed(1)]),
        (pythons, [random.random, lambda: [random.random() for _ in range(312)], lambda: random.getrandbits(1)]),
        (pythons, [lambda: random.gauss(0, 1)] * 3 + [lambda: random.seed(1)]),
    ):
        for draw in draws:
            before = mark()
            assert mark() == before
            draw()
            assert mark() != before


def test_a_generator_of_numpys_that_cannot_be_seeded_is_named() -> None:
    kept = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(1))
    try:
        with pytest.raises(TypeError, match="numpy's global generator is PCG64, and only MT19937 can be seeded"):
            SeededDataset(Drawing(DRAWS["nothing"], 0), 7).__getitems__([1])
    finally:
        np.random.set_bit_generator(kept)


def test_a_mark_that_does_not_show_a_draw_is_not_used() -> None:
    python = sample_seeding._GENERATORS[2]
    before = random.getstate()
    draws = (random.random, lambda: random.gauss(0.0, 1.0))
    assert sample_seeding.shows(python.mark, python, draws)
    assert not sample_seeding.shows(lambda: random.getstate()[1], python, draws[1:] * 2 + (lambda: None,))
    assert not sample_seeding.shows(lambda: 0, python, draws)
    assert random.getstate() == before
