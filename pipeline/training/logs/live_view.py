"""The progress of a trainer on a terminal: two rows at its bottom, above which everything that is printed scrolls."""

import atexit
import io
import sys
import threading
from contextlib import suppress
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress_bar import ProgressBar as RichBar
from rich.table import Table
from rich.text import Text

from pipeline.process.bottom_rows import BottomRows
from pipeline.training.logs.figures import Figures
from pipeline.training.logs.progress import TellsEpochs, TrainerProgress

_FRAME = 0.5
"""Seconds between two frames."""
_ROWS = 2
_WIDEST, _NARROWEST_BAR = 40, 8
_GAP = 2


class LiveView(TellsEpochs, ProgressBar):
    """Draws frames in a thread, two a second. A progress bar of the user's takes its place, as in Lightning.

    The thread asks for the values that the model has logged, and they are read after the next batch: a batch between
    two frames costs a look at a flag.

    Args:
        progress: Of the trainer.
    """

    def __init__(self, progress: TrainerProgress) -> None:
        super().__init__()
        self.progress = progress
        self._enabled = True
        self._wanted = False
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_enabled(self) -> bool:
        """Whether it may draw."""
        return self._enabled

    def disable(self) -> None:
        """Draw nothing: on other ranks than 0, and while a finder of Lightning's draws a bar of its own."""
        self._enabled = False
        self._close()

    def enable(self) -> None:
        """Draw from the next stage on."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show training."""
        if self._enabled:
            self.progress.begin_training(trainer)
            self._open()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read what was logged, if the next frame is to show it."""
        if self._wanted:
            self._wanted = False
            self.progress.read(outputs)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop to draw, and say how fast it was."""
        self._close()
        super().on_train_end(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show a validation."""
        if self._enabled:
            self.progress.begin_evaluation(trainer)
            self._open()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        if self._wanted:
            self._wanted = False
            self.progress.evaluated(trainer, batch_idx, dataloader_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show training again, or nothing."""
        self.progress.end_evaluation()
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            self._close()

    on_test_start = on_predict_start = on_validation_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the terminal as it was."""
        self._close()

    def _open(self) -> None:
        """Begin to draw."""
        if self._thread is None:
            self._ends.clear()
            self._thread = threading.Thread(target=self._draw, name="live-view", daemon=True)
            self._thread.start()
            atexit.register(self._close)

    def _close(self) -> None:
        """Stop to draw, and give the rows back."""
        thread, self._thread, self._wanted = self._thread, None, False
        if thread is not None and thread is not threading.current_thread():
            self._ends.set()
            thread.join(_FRAME + 1)
            atexit.unregister(self._close)

    def _draw(self) -> None:
        """Draw until the end; whatever fails here ends the view, never training."""
        fd = sys.stderr.fileno()
        rows, painter = BottomRows(fd, _ROWS), Painter()
        with suppress(Exception):
            while not self._ends.wait(_FRAME):
                figures, columns = self.progress.figures(between_batches=False), rows.columns
                rows.draw(() if figures is None or not columns else painter.frame(figures, columns))
                self._wanted = True
        with suppress(OSError):
            rows.close()


class Painter:
    """Makes frames of figures, in the colours that the terminal of stderr has and NO_COLOR leaves it."""

    def __init__(self) -> None:
        own = Console(file=sys.stderr, force_terminal=True)
        system: Any = own.color_system if not own.no_color else None
        self._console = Console(
            file=_Frame(sys.stderr.encoding), force_terminal=True, color_system=system, width=80, height=_ROWS
        )

    def frame(self, figures: Figures, columns: int) -> list[str]:
        """Return two lines.

        Args:
            figures: What they show.
            columns: Their width at most.
        """
        self._console.width = columns - 1
        return [self._painted(self._first(figures, columns - 1)), self._painted(self._second(figures))]

    def _painted(self, row: Table | Text) -> str:
        with self._console.capture() as captured:
            self._console.print(row, no_wrap=True, overflow="ellipsis", crop=True)
        return captured.get().partition("\n")[0]

    def _first(self, figures: Figures, columns: int) -> Table:
        """Return where it stands: the bar and what is worth least is left out where there is no room."""
        parts = {"head": Text(figures.head), "count": Text(figures.count), "percent": Text(figures.percent)}
        parts |= {"left": Text(figures.left), "rate": Text(figures.rate, style="cyan")}
        parts = {name: part for name, part in parts.items() if part.plain}
        for name in ("rate", "left", "percent", "count"):
            if _width(parts) > columns:
                parts.pop(name, None)
        room = columns - _width(parts) - _GAP
        row: list[Any] = list(parts.values())
        if figures.share is not None and room >= _NARROWEST_BAR:
            row.insert(
                1,
                RichBar(
                    total=1.0,
                    completed=figures.share,
                    width=min(room, _WIDEST),
                    complete_style="cyan",
                    finished_style="green",
                ),
            )
        table = Table.grid(padding=(0, _GAP, 0, 0))
        for _ in row:
            table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_row(*row)
        return table

    @staticmethod
    def _second(figures: Figures) -> Text:
        """Return what the model logs, and what its checkpoints and restarts are about."""
        parts = [*figures.logged]
        if figures.saving:
            parts.append("saving a checkpoint")
        elif figures.checkpoint is not None:
            parts.append(f"checkpoint {figures.checkpoint}")
        if (figures.attempt or 0) > 1:
            parts.append(f"attempt {figures.attempt}")
        return Text("  ".join(parts))


class _Frame(io.StringIO):
    """Nothing is written to it: it has the encoding of the terminal, which decides how a bar is drawn."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the terminal."""
        return self._encoding


def _width(parts: dict[str, Text]) -> int:
    return sum(part.cell_len + _GAP for part in parts.values())
