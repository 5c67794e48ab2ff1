"""One table says what an exception means for the process that it ends."""

import pytest

from pipeline.errors import (
    NO_FAILURE,
    LeaseLost,
    Outcome,
    Preempted,
    ProofFailed,
    StorageAway,
    UserError,
    did_you_mean,
    outcome,
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, Outcome(0, "done")),
        (UserError("a=1", "b=2"), Outcome(2, "user must change: a=1\nb=2")),
        (Preempted("preempted at step 3"), Outcome(75, "preempted at step 3")),
        (KeyboardInterrupt(), Outcome(130, "interrupted by a person")),
        (SystemExit(7), Outcome(7, "interrupted")),
        (SystemExit("text"), Outcome(1, "interrupted")),
        (ProofFailed("one is missing"), Outcome(2, "proof failed: one is missing")),
        (LeaseLost("attempt 2"), Outcome(1, "lease lost: attempt 2")),
        (StorageAway("s3://x"), Outcome(1, "storage away: s3://x")),
        (ValueError("two\nlines"), Outcome(1, "crash: ValueError: two lines", expected=False)),
        (ZeroDivisionError(), Outcome(1, "crash: ZeroDivisionError", expected=False)),
    ],
)
def test_each_exception_has_one_outcome(error: BaseException | None, expected: Outcome) -> None:
    assert outcome(error) == expected


def test_a_crash_is_a_failure_and_a_preemption_is_none() -> None:
    assert outcome(ValueError()).status not in NO_FAILURE
    assert outcome(Preempted()).status in NO_FAILURE


def test_a_name_that_is_near_is_suggested() -> None:
    assert did_you_mean("max_epoch", ["max_epochs", "min_epochs"]) == "; did you mean 'max_epochs'?"
    assert did_you_mean("x", ["max_epochs"]) == ""


@pytest.mark.parametrize("kind", [UserError, StorageAway])
def test_what_a_loader_worker_raised_is_told_without_its_traceback(kind: type[Exception]) -> None:
    from torch._utils import ExceptionWrapper

    try:
        raise kind("rows.parquet: row group 3 is damaged") from ValueError("snappy")
    except kind as error:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0", exc_info=(kind, error, error.__traceback__))
    with pytest.raises(kind) as raised:
        wrapped.reraise()
    assert str(raised.value) == "rows.parquet: row group 3 is damaged"
