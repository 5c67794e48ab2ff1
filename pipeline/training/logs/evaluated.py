"""What an evaluation found, among the curves of the run that was evaluated."""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from pipeline.run.run_dir import LOGS, RunDir
from pipeline.run.storage_errors import storage_error
from pipeline.training.logs.event_files import OF_TESTS, read_events

log = logging.getLogger(__name__)

Logged = tuple[str, int, float]
"""A value: its name, its step, and the number as TensorBoard keeps it, in 32 bits."""


def log_evaluation(run: RunDir, metrics: Mapping[str, float | None], step: int) -> None:
    """Log the metrics of an evaluation in its run, on any storage; a repeated one adds nothing.

    What cannot be written is a warning: the receipt holds the metrics.

    Args:
        run: That was evaluated.
        metrics: By name; None for a number that is not finite.
        step: Of the checkpoint.
    """
    found = {(name, step, _kept(value)) for name, value in metrics.items() if value is not None}
    try:
        new = sorted(found - set(_logged(run)))
        if new:
            _write(run, new)
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        log.warning("the test metrics are not logged in %s: %s", run.url_of(LOGS), storage_error(error))


def _kept(value: float) -> float:
    return float(Summary.Value(simple_value=value).simple_value)


def _logged(run: RunDir) -> Iterator[Logged]:
    """Yield the values of earlier evaluations."""
    for name in run.names(LOGS):
        if name.endswith(OF_TESTS):
            for event in read_events(run.read(f"{LOGS}/{name}") or b""):
                yield from ((value.tag, event.step, value.simple_value) for value in event.summary.value)


def _write(run: RunDir, values: list[Logged]) -> None:
    with tempfile.TemporaryDirectory(prefix="pipeline-logs-") as folder:
        with SummaryWriter(folder, filename_suffix=OF_TESTS) as writer:
            for name, step, value in values:
                writer.add_scalar(name, value, step)
        for path in Path(folder).iterdir():
            run.write(f"{LOGS}/{path.name}", path.read_bytes())
