"""Every ten seconds of training in figures: each rank measures, one small sum on the CPU brings them together.

The ranks begin a window at a boundary on which the stop vote's ballot agrees, start the sum there and read it some
boundaries later, so that no step and no device waits for it. Rank 0 sends the figures to the loggers and to the run
directory; the first process of each node shows its node's to whoever scrapes it.
"""

import logging
import math
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from pipeline.process.topology import Topology
from pipeline.run.attempts import AttemptLog
from pipeline.run.goodput import SAVING, VALIDATING, Goodput
from pipeline.run.run_dir import RunDir, now
from pipeline.run.storage_errors import storage_error
from pipeline.run.telemetry_record import TelemetryWriter
from pipeline.training.telemetry.device import flops_per_batch, peak_flops, waited_for_gradients
from pipeline.training.telemetry.exporter import MetricsEndpoint
from pipeline.training.telemetry.figures import RankFigures, StragglerWatch, summed_up
from pipeline.training.telemetry.step_clock import StepClock

log = logging.getLogger(__name__)

_LIMIT, _LIMIT_AFTER_ERROR = 20.0, 5.0
"""Seconds for the last windows to be written. After an error, the process has little time left."""
_SAMPLED = 64
"""Steps between two looks at what DDP has measured, which it does itself once in a hundred."""


_ALONE = Topology.from_environment({})


class Telemetry:
    """The telemetry of one fit.

    Args:
        goodput: Counts where the time of this process goes.
        every: Seconds of a window; infinite: nothing is summed up.
        topology: Which process this is.
        open_writer: Returns what keeps the windows in the run directory, given a header; called on rank 0.
        endpoint: What shows the figures of this node, on its first process; None where nobody asked.
    """

    def __init__(
        self,
        goodput: Goodput,
        every: float = math.inf,
        topology: Topology = _ALONE,
        open_writer: Callable[[dict[str, Any]], TelemetryWriter] | None = None,
        endpoint: MetricsEndpoint | None = None,
    ) -> None:
        self.clock = StepClock()
        self._topology, self._goodput, self._every = topology, goodput, every
        self._open_writer, self._endpoint = open_writer, endpoint
        self._writer: TelemetryWriter | None = None
        self._trainer: pl.Trainer | None = None
        self._group: Any = None
        self._hosts = [socket.gethostname()]
        self._began = time.monotonic()
        self._before: dict[str, float] = {}
        self._ranks: torch.Tensor | None = None
        """Of the window that is being summed up: a row a rank."""
        self._work: Any = None
        self._at = self._epoch = 0
        """Step and epoch at the end of that window."""
        self._waits: list[float] = []
        self._batches = 0
        self._stragglers = StragglerWatch()
        self._peak: float | None = None
        self.uploads: Callable[[], dict[str, float]] = dict
        """Returns figures of the uploads of checkpoints, on rank 0."""
        self._failed = self._failed_log = False

    def begin(self, trainer: pl.Trainer, group: Any) -> None:
        """Training begins. All ranks must call it.

        Args:
            trainer: In its fit.
            group: The process group on the CPU that the sums are made in; None for one rank.
        """
        self._trainer, self._group = trainer, group
        device = trainer.strategy.root_device
        self.clock = StepClock(device)
        if group is not None:
            hosts: list[Any] = [None] * self._topology.world_size
            dist.all_gather_object(hosts, self._hosts[0], group=group)
            self._hosts = hosts
        if self._open_writer is not None and self._topology.rank == 0:
            nodes, processes = self._topology.nodes, self._topology.processes
            self._writer = self._open_writer(
                {
                    "world_size": self._topology.world_size,
                    "nodes": nodes,
                    "hosts": self._hosts[:: max(processes, 1)],
                    "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
                }
            )
        self._open_window()

    @property
    def due(self) -> bool:
        """Whether a window is over, by this rank's clock."""
        return time.monotonic() - self._began >= self._every

    def after_batch(self) -> None:
        """A batch is over."""
        self.clock.ends()
        self._batches += 1
        if self._batches % _SAMPLED == 0 and self._trainer is not None and self._group is not None:
            waited = waited_for_gradients(self._trainer)
            if waited is not None:
                self._waits.append(waited)

    def at_boundary(self, step: int, epoch: int, ends: bool) -> bool:
        """Send what has come together by now. All ranks must call it, at the same boundary.

        Args:
            step: Optimizer steps that are done.
            epoch: That is under way.
            ends: Whether a window ends here, as all ranks have agreed.

        Returns:
            Whether one does.
        """
        self.clock.reached(step)
        if self._ranks is not None:
            self._publish_arrived()
        if ends:
            self._end_window(step, epoch)
        return ends

    def _end_window(self, step: int, epoch: int) -> None:
        """End a window, and begin the next one."""
        self._publish_arrived(wait=True)  # of the one before, which arrived long ago
        rows = torch.zeros(self._topology.world_size, len(RankFigures._fields), dtype=torch.float64)
        rows[self._topology.rank] = torch.tensor(self._measured(), dtype=torch.float64)
        self._ranks, self._at, self._epoch = rows, step, epoch
        if self._group is not None:
            self._work = dist.all_reduce(rows, group=self._group, async_op=True)
        self._open_window()

    def _publish_arrived(self, wait: bool = False) -> None:
        """Send the figures of the last window to where they belong, once they are there.

        Args:
            wait: Whether to wait for them.
        """
        if self._ranks is None or not (wait or self._work is None or self._work.is_completed()):
            return
        rows, work, self._ranks, self._work = self._ranks, self._work, None, None
        if work is not None:
            work.wait()
        ranks = [RankFigures(*row) for row in rows.tolist()]
        if not ranks[0].steps:
            return
        if self._endpoint is None and self._topology.rank != 0:
            return
        found = summed_up(ranks, self._hosts, self._topology.processes)
        own = {f"node_{name}": value for name, value in found["nodes"][self._topology.node].items()}
        if self._topology.rank == 0:
            found = self._of_run(found)
            own.update(found)
            self._publish(found)
        if self._endpoint is not None:
            self._endpoint.show(own)

    def finish(self, step: int, epoch: int) -> None:
        """Training ends as it should: send the last window. All ranks must call it."""
        self.clock.reached(step)
        if math.isfinite(self._every):
            self._end_window(step, epoch)
            self._publish_arrived(wait=True)
        self._close(_LIMIT)

    def abandon(self) -> None:
        """Training ends by an error on this rank; what was summed up before is kept."""
        with suppress(RuntimeError):  # of a rank that is gone
            self._publish_arrived()
        self._ranks = self._work = None
        self._close(_LIMIT_AFTER_ERROR)

    def _close(self, seconds: float) -> None:
        if self._writer is not None:
            self._writer.finish(seconds)
            self._say_problem(self._writer)
            self._writer = None
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None

    def _open_window(self) -> None:
        self._began, self._before = time.monotonic(), self._goodput.seconds()
        self.clock.take()
        self._waits, self._batches = [], 0

    def _measured(self) -> RankFigures:
        """Return what this rank has measured in the window that ends."""
        assert self._trainer is not None
        times, spent, device = self.clock.take(), self._goodput.seconds(), self._trainer.strategy.root_device
        waited = sum(self._waits) / len(self._waits) if self._waits else waited_for_gradients(self._trainer)
        return RankFigures(
            time.monotonic() - self._began,
            *times,
            saves=spent[SAVING] - self._before[SAVING],
            validation=spent[VALIDATING] - self._before[VALIDATING],
            all_reduce=-1.0 if waited is None else waited,
            host_memory=_resident(),
            device_memory=float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0.0,
            flops=self._batches * flops_per_batch(self._trainer.lightning_module),
        )

    def _of_run(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return the figures of one window with those that rank 0 alone knows."""
        share = self._goodput.as_dict()["share"]
        whole = {"step": self._at, "epoch": self._epoch, **found, **self.uploads(), "goodput": share}
        if self._trainer is not None and "flops_per_second" in found:
            self._peak = self._peak or peak_flops(self._trainer)
            if self._peak:
                whole["mfu"] = round(found["flops_per_second"] / (self._peak * self._topology.world_size), 5)
        return whole

    def _publish(self, found: dict[str, Any]) -> None:
        """Send the figures of one window to the run directory and to the loggers."""
        window = {"time": round(time.time(), 3), **found}
        said = self._stragglers.see(window)
        if said is not None:
            log.warning("%s", said)
        if self._writer is not None:
            self._writer.add(window)
            self._say_problem(self._writer)
        if self._trainer is not None:
            figures = {
                f"telemetry/{name}": float(value)
                for name, value in window.items()
                if isinstance(value, int | float) and name not in ("time", "step", "epoch", "slowest_rank")
            }
            self._log(self._trainer, figures)

    def _log(self, trainer: pl.Trainer, figures: dict[str, float]) -> None:
        for logger in trainer.loggers:
            try:
                logger.log_metrics(figures, step=self._at)
            except Exception as error:  # noqa: BLE001 - a logger's own: what the model logs will show it as well
                if not self._failed_log:
                    log.warning("%s does not take telemetry: %s", type(logger).__name__, error)
                self._failed_log = True

    def _say_problem(self, writer: TelemetryWriter) -> None:
        """Warn once that windows are not written; they are kept and written later if they can be."""
        if writer.problem is not None and not self._failed:
            log.warning("telemetry is not written to the run directory: %s", storage_error(writer.problem))
        self._failed = writer.problem is not None


def telemetry_of_fit(
    run: RunDir | None, topology: Topology, writer: AttemptLog, every: float, port: int | None
) -> Telemetry:
    """Return the telemetry of a fit.

    Args:
        run: The run directory; None: nothing is written, and there is none.
        topology: Which process this is.
        writer: Of the run.
        every: Seconds of a window; 0: never.
        port: At which the first process of each node shows its figures; None: at none.
    """
    if run is None or every == 0:
        return Telemetry(writer.goodput)
    endpoint = None
    if port is not None and topology.local_rank == 0:
        endpoint = MetricsEndpoint(port, {"run_dir": run.label, "node": str(topology.node)})
    return Telemetry(
        *(writer.goodput, every, topology),
        lambda header: TelemetryWriter(run, writer.attempt, {**header, "started": now()}),
        endpoint,
    )


def _resident() -> float:
    """Return the resident bytes of this process; 0 where the system does not say."""
    try:
        return float(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError):
        return 0.0
