"""Counters in a checkpoint say where training stands, and a resume makes no guess."""

from typing import Any

from pipeline.training.state.progress import is_mid_epoch, settle


def loops(ready: int, completed: int, last: bool = True) -> dict[str, Any]:
    def count() -> dict[str, int]:
        return {"ready": ready, "started": ready, "processed": completed, "completed": completed}

    progress = {"total": count(), "current": count(), "is_last_batch": last}
    epochs = {"total": count(), "current": count()}
    return {"fit_loop": {"epoch_progress": epochs, "epoch_loop.batch_progress": progress}}


def test_an_epoch_that_resumes_in_its_middle_counts_as_not_started_and_its_batches_as_done() -> None:
    found = loops(ready=5, completed=4)
    settle(found, epoch=2, batches=4)
    assert found["fit_loop"]["epoch_progress"]["current"] == {"ready": 3, "started": 2, "processed": 2, "completed": 2}
    progress = found["fit_loop"]["epoch_loop.batch_progress"]
    assert progress["current"] == {"ready": 4, "started": 5, "processed": 4, "completed": 4}
    assert progress["is_last_batch"] is False


def test_between_two_epochs_only_epochs_are_counted() -> None:
    found = loops(ready=7, completed=7)
    settle(found, epoch=2, batches=0)
    assert set(found["fit_loop"]["epoch_progress"]["total"].values()) == {2}
    assert found["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 7


def test_another_programs_checkpoint_is_in_mid_epoch_unless_its_batch_was_the_last() -> None:
    assert is_mid_epoch({"loops": loops(3, 3, last=False)})
    assert not is_mid_epoch({"loops": loops(7, 7)})
    assert not is_mid_epoch({})
