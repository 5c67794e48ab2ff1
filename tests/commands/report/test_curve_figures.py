"""Curves are grouped by what they show, the most telling first, and compared by name."""

import numpy as np

from pipeline.commands.report.curve_figures import compared_figures, curve_figures, points_of_each, prominent
from pipeline.commands.report.figure import StepMark
from pipeline.run.event_files import LoggedCurve


def curves(*names: str, value: float = 1.0) -> dict[str, LoggedCurve]:
    return {name: LoggedCurve(name, np.arange(3), np.full(3, value)) for name in names}


def test_training_and_validation_share_a_figure_and_the_monitor_comes_first() -> None:
    names = (
        "checkpoint/score",
        "epoch",
        "lr-Adam",
        "train_acc",
        "train_loss_step",
        "train_loss_epoch",
        "val_acc",
        "val_loss",
        "zeta",
    )
    figures = curve_figures(curves(*names), [StepMark(1, "attempt 2")], "val_acc")
    assert [(each.title, [trace["name"] for trace in each.traces]) for each in figures] == [
        ("acc", ["train_acc", "val_acc"]),
        ("loss", ["train_loss_epoch", "train_loss_step", "val_loss"]),
        ("lr-Adam", ["lr-Adam"]),
        ("zeta", ["zeta"]),
        ("checkpoint/score", ["checkpoint/score"]),
        ("epoch", ["epoch"]),
    ]
    assert all(each.layout["shapes"] for each in figures)
    assert prominent(figures) == 4, "what this program and its loggers add is folded"
    assert prominent(figures[-2:]) == 2, "unless there is nothing else"
    assert prominent(curve_figures(curves(*map(str, range(50))), [])) == 6


def test_curves_of_a_figure_differ_in_more_than_colour() -> None:
    (figure,) = curve_figures(curves("train/loss", "val/loss"), [])
    assert len({trace["line"]["dash"] for trace in figure.traces}) == 2


def test_folders_are_not_taken_for_stages() -> None:
    figures = curve_figures(curves("a/train_loss", "b/train_loss", "a/val_loss"), [])
    assert [[trace["name"] for trace in each.traces] for each in figures] == [
        ["a/train_loss", "a/val_loss"],
        ["b/train_loss"],
    ]


def test_runs_are_compared_where_at_least_two_have_logged() -> None:
    runs = [("one", curves("loss", "own")), ("two", curves("loss", value=2.0)), ("three", curves())]
    (figure,) = compared_figures(runs)
    assert figure.title == "loss"
    assert [(trace["name"], trace["y"][0]) for trace in figure.traces] == [("one", 1.0), ("two", 2.0)]


def test_the_page_stays_small_however_many_curves_there_are() -> None:
    assert points_of_each(1) == 2000
    assert points_of_each(1000) * 1000 <= 300_000
    assert points_of_each(100_000) == 200
