"""What earlier attempts left in TensorBoard's event files, and what of it an attempt that resumes has to hide.

An attempt that is killed has logged values of steps after the checkpoint that the next one resumes from, which are
logged again. TensorBoard hides, where a file begins with a restart (SessionLog.START) at a step, all that was logged
before of that step and later ones. A step alone does not tell the two apart, though: what a validation after step 20
logs stands at 19 (Lightning's count of the batch before) or at 20 (`self.global_step`), and the next batch's values at
20, too. So each captured state leaves a mark of its step among the values (SessionLog.CHECKPOINT, which readers skip):
what stands after the mark is hidden, and what the restart hides of the values before it is written once more.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from pipeline.run.tfrecords import frames

OF_TESTS = ".test"
"""How the names of files end that hold the values of a test: no attempt logs them again."""

_BUDGET = 64 << 20
"""Bytes of files that are read back to find what a restart hides, beyond those that are behind the mark."""
_COPIED = 4 << 20
"""Bytes of values that are written once more at most."""


class Restart(NamedTuple):
    """What the first events file of an attempt begins with.

    Attributes:
        step: From which one on earlier values are hidden; None: none has to be.
        events: What that hides wrongly, in order.
    """

    step: int | None = None
    events: tuple[Any, ...] = ()


class _Logged(NamedTuple):
    event: Any
    by_test: bool


def read_events(data: bytes) -> Iterator[Any]:
    """Yield the events of a file, up to the first one that is torn or damaged."""
    found = frames(data)
    for start, length in zip(found.starts.tolist(), found.lengths.tolist(), strict=True):
        try:
            yield Event.FromString(data[start : start + length])
        except DecodeError:
            return


def mark(step: int) -> Any:
    """Return the event that says that a state was captured here.

    Args:
        step: Optimizer steps that were done.
    """
    return Event(step=step, session_log=SessionLog(status=SessionLog.CHECKPOINT))


def beginning(restart: Restart) -> Iterator[Any]:
    """Yield the events that an attempt's first file begins with."""
    if restart.step is not None:
        yield Event(step=restart.step, session_log=SessionLog(status=SessionLog.START))
    yield from restart.events


def restart_at(step: int, files: Iterable[tuple[str, bytes]]) -> Restart:
    """Return what an attempt has to hide of what earlier ones have logged.

    Args:
        step: At which it resumes; 0: it begins from scratch.
        files: The name and the bytes of each events file, the newest one first; read as far as needed.
    """
    logged: list[_Logged] = []
    rest = iter(files)
    for name, data in rest:
        found = [_Logged(event, name.endswith(OF_TESTS)) for event in read_events(data)]
        logged[:0] = found
        if found and step > 0 and not any(each.event.step >= step for each in found):
            break
    first = _first_after(step, _shown(logged))
    if first is None:
        return Restart()
    budget = _BUDGET
    for name, data in rest if first < step - 1 else ():
        budget -= len(data)
        if budget < 0:
            first = step - 1
            break
        found = [_Logged(event, name.endswith(OF_TESTS)) for event in read_events(data)]
        logged[:0] = found
        if found and not any(each.event.step >= first for each in found):
            break
    hidden = _wrongly_hidden(step, first, _shown(logged))
    if sum(event.ByteSize() for event in hidden) > _COPIED:  # values at steps of their own, an epoch's number for one
        first = max(first, step - 1)
        hidden = _wrongly_hidden(step, first, _shown(logged))
    return Restart(first, tuple(hidden))


def _shown(logged: list[_Logged]) -> list[_Logged]:
    """Return what a reader shows of a stream of events: without what restarts hide."""
    shown: list[_Logged] = []
    for each in logged:
        if each.event.session_log.status == SessionLog.START:
            shown = [one for one in shown if one.event.step < each.event.step]
        elif each.event.HasField("summary") or each.event.HasField("session_log"):
            shown.append(each)
    return shown


def _mark_of(step: int, shown: list[_Logged]) -> int | None:
    """Return where the last mark of a step stands; None where there is none."""
    wanted = (index for index in range(len(shown) - 1, -1, -1) if shown[index].event.step == step)
    return next((i for i in wanted if shown[i].event.session_log.status == SessionLog.CHECKPOINT), None)


def _first_after(step: int, shown: list[_Logged]) -> int | None:
    """Return the first step of what is logged again; None for nothing."""
    at = _mark_of(step, shown)
    if at is None:  # of an earlier version of this program
        return step if any(each.event.step >= step and not each.by_test for each in shown) else None
    again = (each.event for each in shown[at + 1 :] if not each.by_test)
    return min((event.step for event in again if not _is_of_hparams(event)), default=None)


def _wrongly_hidden(step: int, first: int, shown: list[_Logged]) -> list[Any]:
    at = _mark_of(step, shown)
    until = -1 if at is None else at
    return [
        each.event for index, each in enumerate(shown) if each.event.step >= first and (index <= until or each.by_test)
    ]


def _is_of_hparams(event: Any) -> bool:
    return bool(event.summary.value) and all(value.tag.startswith("_hparams_/") for value in event.summary.value)
