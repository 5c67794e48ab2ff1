"""Lightning's counters of epochs and batches, as they stand in a checkpoint."""

from typing import Any


def settle(loops: dict[str, Any], epoch: int, batches: int) -> None:
    """Write Lightning's counters into a checkpoint as they stand between two batches, or between two epochs.

    Args:
        loops: `checkpoint["loops"]`.
        epoch: Epochs that are over.
        batches: Batches of the epoch after those that are over.
    """
    # An epoch that resumes in its middle counts as not started, so that its on_train_epoch_start is called again: what
    # that sets up in callbacks and models (how many batches to accumulate, a list of outputs) no checkpoint holds.
    begun = epoch + (batches > 0)
    for counters in loops["fit_loop"]["epoch_progress"].values():
        counters.update(ready=begun, started=epoch, processed=epoch, completed=epoch)
    if batches:
        progress = loops["fit_loop"]["epoch_loop.batch_progress"]
        progress["is_last_batch"] = False
        more = {name: value - batches for name, value in progress["current"].items() if name != "started"}
        # Where a save follows a step that was thrown away, it has not started either.
        more["started"] = max(more["completed"], 0)
        for counter, value in more.items():
            progress["total"][counter] -= value
            progress["current"][counter] -= value


def is_mid_epoch(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint of another program was saved in the middle of an epoch."""
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
    return bool(progress.get("current", {}).get("ready")) and not progress.get("is_last_batch", False)
