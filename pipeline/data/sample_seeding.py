"""Samples fetched one by one, each with torch's, numpy's and Python's global generators seeded for it, then put back.

Seeding all three takes longer than fetching a small sample. They are seeded for the first samples of a dataset, which
show from which of them it draws; from then on only those are, and the others are compared before and after each batch.
Where one has been drawn from all the same, the batch is fetched again, with that one seeded: the numbers are the same.
"""

import ctypes
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from operator import length_hint
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

_SHOWN = 256
"""Samples that show from which generators a dataset draws: they take 5 ms longer."""


class _Generator(NamedTuple):
    """A global generator: its functions.

    Attributes:
        mark: Returns all that the generator consists of, cheaply. Equal marks: no number was drawn in between.
        seed: Takes 64 bits.
        save: Returns its state.
        restore: Takes its state.
    """

    mark: Callable[[], Any]
    seed: Callable[[int], Any]
    save: Callable[[], Any]
    restore: Callable[[Any], Any]


class _Kept(NamedTuple):
    """A generator as it stood at a mark; its state is None where nobody needs it back."""

    mark: Any
    state: Any


# A state is 624 words and a position in them. Whoever draws moves the position, and 624 draws change all words: the
# position and some words show it. get_state and getstate copy them all: torch's takes 10 us a batch, Python's 16, and
# numpy's 70. So the generators are read in memory, behind the 16 bytes that each object of Python's begins with.
_HEADER: int = object.__basicsize__
_SOME = 64
_WORDS = 4 * 624


def _memory(address: int, size: int) -> Callable[[], bytes]:
    """Return what reads so many bytes."""
    return memoryview((ctypes.c_char * size).from_address(address)).tobytes


def torch_marks(generator: torch.Generator) -> Callable[[], Any]:
    """Return what marks where a generator on the CPU stands: found by its words, else its whole state."""
    state = generator.get_state().numpy()
    address: int = ctypes.c_void_p.from_address(id(generator) + _HEADER).value or 0
    # Each word takes 8 bytes in the state, and 4 in memory.
    at = _memory(address, 4 * _SOME)().find(state[24 : 24 + 2 * _SOME].view(np.uint64).astype(np.uint32).tobytes())
    # The seed and the position stand before the words, the second of two normal numbers behind them.
    parts = [_memory(address + at - 20, _SOME), _memory(address + at + _WORDS, 28)] if at >= 20 else []
    return (lambda: [part() for part in parts]) if parts else lambda: generator.get_state().numpy().tobytes()


@lru_cache(maxsize=1)
def _numpy_words(bits: Any) -> tuple[Callable[[], bytes], Callable[[], bytes]]:
    if not isinstance(bits, np.random.MT19937):
        raise TypeError(f"numpy's global generator is {type(bits).__name__}, and only MT19937 can be seeded")
    address = bits.ctypes.state_address
    return _memory(address, _SOME), _memory(address + _WORDS, 4)


_PYTHON: Any = random.seed.__self__  # type: ignore[attr-defined]
_python_position = _memory(id(_PYTHON) + _HEADER, _SOME)
_NUMPY: Any = np.random.get_state.__self__  # type: ignore[attr-defined]
_numpy_normal = _memory(id(_NUMPY) + _HEADER, type(_NUMPY).__basicsize__ - _HEADER)


def _numpy_mark() -> Any:
    words, position = _numpy_words(np.random.get_bit_generator())  # type: ignore[attr-defined]
    return words(), position(), _numpy_normal()


def _python_mark() -> Any:
    return _python_position(), _PYTHON.gauss_next


def _seed_numpy(seed: int) -> None:
    np.random.seed(seed >> 32)  # it takes 32 bits


def shows(mark: Callable[[], Any], generator: _Generator, draws: Iterable[Callable[[], Any]]) -> bool:
    """Return whether a mark tells each kind of draw from none: another version may keep its state elsewhere."""
    state = generator.save()
    try:
        for draw in draws:
            generator.restore(state)
            before, again = mark(), mark()
            draw()
            if before != again or mark() == before:
                return False
    except TypeError:  # it is another kind of generator, which cannot be seeded either
        return False
    finally:
        generator.restore(state)
    return True


def _numpy_state() -> Any:
    state: Any = np.random.get_state()
    return state[1].tobytes(), state[2:]


_TORCH = torch.default_generator
_GENERATORS = tuple(
    whole._replace(mark=mark) if shows(mark, whole, draws) else whole
    for mark, whole, draws in (
        (
            torch_marks(_TORCH),
            _Generator(
                lambda: _TORCH.get_state().numpy().tobytes(), _TORCH.manual_seed, _TORCH.get_state, _TORCH.set_state
            ),
            (lambda: torch.rand(1), lambda: torch.randn(1), lambda: torch.randperm(3), lambda: torch.rand(700)),
        ),
        (
            _numpy_mark,
            _Generator(_numpy_state, _seed_numpy, np.random.get_state, np.random.set_state),
            (np.random.random, np.random.standard_normal, lambda: np.random.randint(9), lambda: np.random.random(700)),
        ),
        (
            _python_mark,
            _Generator(random.getstate, random.seed, random.getstate, random.setstate),
            (
                random.random,
                lambda: random.gauss(0.0, 1.0),
                lambda: random.getrandbits(9),
                lambda: random.getrandbits(20_000),
            ),
        ),
    )
)
_kept = [_Kept(None, None) for _ in _GENERATORS]
"""Each of them, as it was kept the last time in this process."""


def _keep() -> list[_Kept]:
    """Return the generators as they stand, with their states outside of a loader worker, where they have a use."""
    needed = get_worker_info() is None
    for at, generator in enumerate(_GENERATORS):
        mark, last = generator.mark(), _kept[at]
        if last.mark != mark or (needed and last.state is None):
            _kept[at] = _Kept(mark, generator.save() if needed else None)
    return _kept.copy()


def _put_back(kept: list[_Kept], which: Iterable[int] = range(len(_GENERATORS))) -> None:
    for at in which:
        if kept[at].state is not None:
            _GENERATORS[at].restore(kept[at].state)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the three global generators with 64 bits, and leave them as they were."""
    kept = _keep()
    try:
        for generator in _GENERATORS:
            generator.seed(seed)
        yield
    finally:
        _put_back(kept)


class _Asked:
    """Counts who asks for the state or the seed of a generator: who saves and restores one leaves no trace in it."""

    def __init__(self) -> None:
        self.times = 0
        # Every function of torch.random goes to this object.
        self._places: list[tuple[Any, str, Any, Any]] = [
            (torch.random, "default_generator", _TORCH, _AskedGenerator(self)),
            (np.random, "get_state", np.random.get_state, self._counted(np.random.get_state)),
            (random, "getstate", random.getstate, self._counted(random.getstate)),
        ]

    def __enter__(self) -> None:
        for module, name, _, counted in self._places:
            setattr(module, name, counted)

    def __exit__(self, *_: object) -> None:
        for module, name, original, _ in self._places:
            setattr(module, name, original)

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.times += 1
            return function(*arguments, **named)

        return call


class _AskedGenerator:
    def __init__(self, asked: _Asked) -> None:
        self.asked = asked

    def __getattr__(self, name: str) -> Any:
        self.asked.times += 1
        return getattr(_TORCH, name)


_asked = _Asked()


class SampleSeeding:
    """Fetches the samples of a dataset one by one, each seeded.

    Args:
        dataset: With `__getitem__`.
        always: Whether all three generators are seeded for each sample, whichever it draws from.
    """

    def __init__(self, dataset: Any, always: bool = False) -> None:
        self.dataset = dataset
        self._drawn = list(range(len(_GENERATORS))) if always else []
        """Which of them it was seen to draw from."""
        self._to_show = _SHOWN

    def fetch(self, indices: Sequence[int], seeds: Callable[[], Sequence[int]]) -> list[Any]:
        """Return the samples of a batch.

        Args:
            indices: Of the batch.
            seeds: Returns 64 bits for each, if they are needed.
        """
        kept = _keep()
        touched: Iterable[int] = range(len(_GENERATORS))
        try:
            with _asked:
                if self._to_show > 0:
                    self._to_show -= len(indices)
                    return self._watched(indices, seeds())
                samples = self._proven(indices, seeds, kept)
                touched = self._drawn
                return samples
        finally:
            _put_back(kept, touched)

    def _watched(self, indices: Sequence[int], seeds: Sequence[int]) -> list[Any]:
        """Return samples for each of which all generators are seeded, and see which of them it draws from."""
        samples = []
        for index, seed in zip(indices, seeds, strict=True):
            for generator in _GENERATORS:
                generator.seed(seed)
            asked = _asked.times
            marks = [generator.mark() for generator in _GENERATORS]
            samples += fetch_samples(self.dataset, [index])
            self._has_drawn(marks, asked)
        return samples

    def _proven(self, indices: Sequence[int], seeds: Callable[[], Sequence[int]], kept: list[_Kept]) -> list[Any]:
        """Return samples for which all generators are seeded that they draw from."""
        marks = [each.mark for each in kept]
        while True:
            asked = _asked.times
            try:
                samples = self._seeded(indices, seeds) if self._drawn else fetch_samples(self.dataset, indices)
            except Exception:
                if not self._has_drawn(marks, asked):
                    raise
            else:
                if not self._has_drawn(marks, asked):
                    return samples

    def _seeded(self, indices: Sequence[int], seeds: Callable[[], Sequence[int]]) -> list[Any]:
        samples = []
        seed_each = [_GENERATORS[at].seed for at in self._drawn]
        for index, seed in zip(indices, seeds(), strict=True):
            for seed_one in seed_each:
                seed_one(seed)
            samples += fetch_samples(self.dataset, [index])
        return samples

    def _has_drawn(self, marks: Sequence[Any], asked: int) -> bool:
        """Return whether a generator was drawn from since its mark of which that was not known, and remember it."""
        found = [
            at
            for at, generator in enumerate(_GENERATORS)
            if at not in self._drawn and (asked != _asked.times or generator.mark() != marks[at])
        ]
        self._drawn += found
        return bool(found)


def fetch_samples(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """Return samples; what one of them raises says which one it is."""
    left = iter(indices)
    try:
        return [dataset[index] for index in left]
    except Exception as error:
        error.add_note(f"raised by {type(dataset).__name__}[{indices[-1 - length_hint(left)]}]")
        raise
