"""Where the training loaders of the user's own stand, as it goes into checkpoints and comes back by a resume."""

import logging
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities.model_helpers import is_overridden

from pipeline.data.sample_ids import StripSampleIds
from pipeline.training.loaders import loader_compat
from pipeline.training.loaders.tracked_loader import UNKNOWN, TrackedLoader
from pipeline.training.state.run_state import RunState

log = logging.getLogger(__name__)


class LoaderPosition:
    """Of the loaders of one trainer that have no order of ours, wherever they come from.

    Args:
        trainer: Not running yet.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self.trainer = trainer
        self._loaders: list[TrackedLoader] = []
        self._expected: RunState | None = None
        self._places: tuple[dict[str, Any], bool] | None = None
        self._told: set[str] = set()
        loader_compat.on_loaders_ready(trainer, self._track)

    def capture(self, mid: bool, unused: int = 0) -> dict[str, Any] | None:
        """Return where this rank's loaders stand; None without any.

        Args:
            mid: Whether the epoch is in its middle.
            unused: Its last batches that were accumulated for a step that was never made.
        """
        if not self._loaders:
            return None
        unused += loader_compat.batches_ahead(self.trainer)
        batches, cycled = loader_compat.combined_progress(self.trainer)
        return {
            "batches": max(batches - unused, 0),
            "cycled": cycled,
            "each": [loader.place(mid, unused) for loader in self._loaders],
        }

    def expect(self, state: RunState) -> None:
        """Take note of the checkpoint that is resumed, before any loader is built."""
        self._expected = state

    def plan(self, state: RunState, batches: int, has_order: bool) -> int:
        """Find the place of the checkpoint that is resumed, before training.

        Args:
            state: Of that checkpoint.
            batches: Of its epoch that each rank had completed.
            has_order: Whether the training loader is ours, whose place is a position in its order.

        Returns:
            The same, for the ranks and batches of now; 0 where the epoch has to restart.

        Raises:
            UserError: A loader would leave out twice what was used.
        """
        places: dict[str, Any] = {}
        problem, scaled = None, batches
        if batches and has_order is (state.position is None):
            problem = "its training loader is another one"
        elif not self._loaders or self._is_positioned:
            return batches
        else:
            places, problem = self._of_rank(state, batches)
        if problem is None and batches:
            scaled, problem = self._scaled(places["each"], batches, len(state.ranks))
        if problem is not None:
            log.warning("restarting epoch %d from its beginning: %s", state.epoch, problem)
            return 0
        if scaled != batches:
            for place in places["each"]:
                place["batches"] = scaled
            places["batches"] = scaled
        self._places = places, batches > 0
        return scaled

    def resume(self, fetcher: Any) -> None:
        """Have the epoch that begins now start at the place that was found, once."""
        if self._places is None:
            return
        (places, mid), self._places = self._places, None
        for loader, place in zip(self._loaders, places["each"], strict=True):
            loader.resume(place, mid)
        iter(fetcher)
        if mid:
            fetcher.fetched += places["batches"]
            loader_compat.set_combined_progress(self.trainer, places["batches"], places["cycled"])

    def _track(self, combined: Any) -> None:
        """Follow the loaders that Lightning has just asked for."""
        if any(isinstance(loader, StripSampleIds) for loader in combined.flattened):
            self._loaders = []
            return
        self._loaders = [TrackedLoader(loader, self.trainer, self._unused) for loader in combined.flattened]
        loader_compat.iterate_instead(combined, self._loaders)
        self._rewind(combined)
        for loader in self._loaders:
            if self._is_positioned:
                how = "begins where the data module's load_state_dict has put it"
            elif loader.is_stateful:
                how = "restores its own state"
            elif loader.has_indices:
                how = "skips the batches that were used"
            else:
                how = "reads the batches that were used once more, and skips them"
            if str(loader) not in self._told:
                self._told.add(str(loader))
                log.info("%s: its samples are not accounted for; a resume in the middle of an epoch %s", loader, how)

    def _rewind(self, combined: Any) -> None:
        """Have loaders that position themselves begin with the epoch, before their length is asked for."""
        state, self._expected = self._expected, None
        if state is None or self._is_positioned:
            return
        places, problem = self._of_rank(state, state.batches)
        before = [sized_len(loader) for loader in self._loaders]
        if problem is None:
            for loader, place in zip(self._loaders, places["each"], strict=True):
                loader.rewind(place, mid=state.batches > 0)
        if before != [sized_len(loader) for loader in self._loaders]:
            loader_compat.limit(self.trainer, combined)

    def _unused(self) -> int:
        """Return how many batches may be fetched and not used where a checkpoint stands, and need to be known."""
        accumulates = self.trainer.accumulate_grad_batches - 1 if self._stateful else 0
        return accumulates + loader_compat.batches_ahead(self.trainer, most=True)

    @property
    def _is_positioned(self) -> bool:
        """Whether the data module itself keeps where its loaders stand, so that they must not be moved once more."""
        data = getattr(self.trainer, "datamodule", None)
        return data is not None and not self._stateful and is_overridden("load_state_dict", data)

    @property
    def _stateful(self) -> bool:
        return any(loader.is_stateful for loader in self._loaders)

    def _of_rank(self, state: RunState, batches: int) -> tuple[dict[str, Any], str | None]:
        """Return the places of this rank, and what is wrong with them."""
        saved = [each.get("loaders") for each in state.ranks]
        own: Any = saved[self.trainer.global_rank if len(saved) == self.trainer.world_size else 0]
        if own is None:  # an earlier release has written it
            unknown = {**UNKNOWN, "batches": batches}
            return {"batches": batches, "cycled": None, "each": [dict(unknown) for _ in self._loaders]}, None
        if len(own["each"]) != len(self._loaders):
            return own, f"there are {len(self._loaders)} training loaders, and the checkpoint's {len(own['each'])}"
        return own, None

    def _scaled(self, places: list[dict[str, Any]], batches: int, ranks: int) -> tuple[int, str | None]:
        """Return the batches of now that hold the samples of those batches, and what is wrong where none do."""
        world_size = self.trainer.world_size
        sizes = [(place["batch_size"], loader.batch_size) for place, loader in zip(places, self._loaders, strict=True)]
        if ranks == world_size and all(before in (now, None) for before, now in sizes):
            for loader, place in zip(self._loaders, places, strict=True):
                loader.require_whole(place)
            return batches, None
        place, loader = places[0], self._loaders[0]
        before, now = sizes[0]
        takes_turns = place["distributed"] and loader.is_distributed and place["now"]["state"] is None
        if len(places) > 1 or before is None or now is None or not (ranks == world_size or takes_turns):
            return 0, (
                f"the place of {loader} is one of batches of {before} on {ranks} rank(s), which says nothing of "
                f"batches of {now} on {world_size}"
            )
        scaled, rest = divmod(batches * ranks * before, world_size * now)
        if rest and place["now"]["state"] is None:
            log.info("%d samples that epoch %d has used are used again", rest, self.trainer.current_epoch)
        return scaled, None
