"""The table is whole in a pipe, and readable at 80 columns."""

from datetime import UTC, datetime, timedelta

import pytest

from pipeline.checkpoint.commit import Monitor
from pipeline.checkpoint.run_summary import RunCondition, RunSummary
from pipeline.commands.list_runs.columns import columns, lines
from tests.support.summaries import a_run

REASON = "crash: RuntimeError: CUDA error: an illegal memory access was encountered"


def sweep() -> list[RunSummary]:
    started = datetime.now(UTC) - timedelta(hours=7)
    common = {"started": started, "goodput": 0.931, "bytes": 12_300_000_000, "max_steps": 400}
    configs = [
        {"model.class_path": "m.Model", "model.learning_rate": rate, "data.batch_size": size, "trainer.precision": "32"}
        for rate, size in ((0.001, 32), (0.01, 64))
    ]
    return [
        a_run("team-vision-resnet50-imagenet-sweep-001", 0.0381402, config=configs[0], step=400, **common),
        a_run(
            *("team-vision-resnet50-imagenet-sweep-002", 0.25),
            **{
                **common,
                "state": RunCondition.FAILED,
                "status": 1,
                "reason": REASON,
                "step": 120,
                "config": configs[1],
            },
        ),
    ]


def shown(runs: list[RunSummary], width: int | None, wanted: list[str] | None = None) -> list[str]:
    return lines(columns(runs, "runs", wanted), width, may_drop=wanted is None)


def test_a_pipe_gets_all_of_it() -> None:
    title, first, second = shown(sweep(), None)
    assert title.split() == [
        *("name", "state", "progress", "val_loss", "learning_rate", "batch_size", "goodput", "size", "started"),
        "reason",
    ]
    assert first.split()[:2] == ["team-vision-resnet50-imagenet-sweep-001", "finished"]
    for part in ("step 400/400", "0.0381402", "0.001", "93.1 %", "12.3 GB", "(7 h ago)"):
        assert part in first
    assert "failed (1)" in second
    assert second.endswith(REASON)


@pytest.mark.parametrize("width", [200, 120, 100, 80, 60, 40])
def test_a_terminal_gets_what_fits_and_is_told_what_does_not(width: int) -> None:
    found = shown(sweep(), width)
    assert all(len(line) <= width for line in found[:3])
    assert "name" in found[0]
    assert "state" in found[0]
    full = [column.title for column in columns(sweep(), "runs")]
    missing = [title for title in full if title not in found[0] and title[:3] not in found[0]]
    assert bool(missing) == (len(found) == 4), "what is left out is named"


def test_at_80_columns_names_that_differ_at_their_end_stay_apart() -> None:
    title, first, second, _ = shown(sweep(), 80)
    assert first.split()[0].endswith("-001")
    assert second.split()[0].endswith("-002")
    assert "…" in first.split()[0]
    for part in ("state", "val_loss", "progress", "started"):
        assert part in title
    assert "7 h ago" in first


def test_columns_that_a_user_names_are_all_there_however_narrow() -> None:
    title, *_ = shown(sweep(), 40, ["size", "name", "goodput", "started", "trainer.precision", "reason"])
    assert title.split() == ["size", "name", "goodput", "started", "precision", "reason"]


def test_the_end_of_a_key_is_its_title_where_no_other_key_has_it() -> None:
    configs = [{"model.a.size": n, "model.b.rate": n, "data.b.rate": n, "data.name": n} for n in (1, 2)]
    runs = [a_run(f"{n}", config=config) for n, config in enumerate(configs)]
    assert [column.title for column in columns(runs, "runs")][2:6] == [
        "a.size",
        "model.b.rate",
        "data.b.rate",
        "data.name",
    ]


def test_a_metric_is_named_in_each_line_where_runs_have_different_ones() -> None:
    other = a_run("b", best=Monitor("val_acc", 0.75, "max"))
    assert "val_loss 0.5" in shown([a_run("a", 0.5), other], None)[1]
    assert "val_loss" in shown([a_run("a", 0.5)], None)[0]


def test_what_no_run_has_is_no_column() -> None:
    assert shown([a_run("a")], None)[0].split() == ["name", "state", "size", "started"]


def test_progress_counts_in_what_limits_the_training() -> None:
    runs = [
        a_run("a", step=5, max_steps=9, max_epochs=3, epoch=1),
        a_run("b", step=5, max_epochs=3, epoch=1),
        a_run("c", step=5, epoch=1),
        a_run("d"),
    ]
    (found,) = (column.cells for column in columns(runs, "runs") if column.key == "progress")
    assert list(found) == ["step 5/9", "epoch 1/3, step 5", "step 5", ""]
