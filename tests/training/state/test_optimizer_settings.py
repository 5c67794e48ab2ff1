"""What a resume takes of the settings of optimizers and schedules is named, and can be chosen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Ended
from tests.support.resumes import state
from tests.support.runs import fit, listing

App = Callable[..., Ended]
MODEL = "--model=tests.support.models.Optimized"


def asked(**values: Any) -> tuple[str, ...]:
    return MODEL, *(f"--model.{name}={value}" for name, value in values.items())


def group(run: Path, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = state(str(run))["optimizer_states"][0]["param_groups"][number]
    return found


def test_another_learning_rate_loses_and_both_are_named(app: App, tmp_path: Path) -> None:
    assert fit(app, str(tmp_path), 1, *asked(learning_rate=0.05)).status == 0
    ended = fit(app, str(tmp_path), 2, *asked(learning_rate=0.2, weight_decay=0.1))
    assert ended.status == 0, ended.err
    assert "Adam.lr=0.05, not 0.2; Adam.weight_decay=0.0, not 0.1" in ended.err
    assert (group(tmp_path)["lr"], group(tmp_path)["weight_decay"]) == (0.05, 0.0)
    again = fit(app, str(tmp_path), 3, *asked(learning_rate=0.2, weight_decay=0.1))
    assert "Adam.lr=0.05, not 0.2" in again.err, "it still loses, and is still said"


def test_the_same_settings_are_no_news_whatever_a_schedule_has_done(app: App, tmp_path: Path) -> None:
    assert fit(app, str(tmp_path), 1, *asked(schedule="StepLR")).status == 0
    ended = fit(app, str(tmp_path), 2, *asked(schedule="StepLR"))
    assert ended.status == 0, ended.err
    assert "settings win" not in ended.err


def test_override_optimizer_takes_what_is_asked_for_and_keeps_the_moments(app: App, tmp_path: Path) -> None:
    assert fit(app, str(tmp_path), 1, *asked(learning_rate=0.08, schedule="StepLR")).status == 0
    assert group(tmp_path)["lr"] == 0.04, "halved after 5 of 7 steps"
    more = asked(learning_rate=0.008, weight_decay=0.1, schedule="StepLR", step_size=100)
    ended = fit(app, str(tmp_path), 2, *more, "--override_optimizer=true")
    assert ended.status == 0, ended.err
    assert "Adam.lr 0.08 -> 0.008; Adam.weight_decay 0.0 -> 0.1" in ended.err
    assert "StepLR.step_size 5 -> 100" in ended.err
    assert group(tmp_path)["lr"] == pytest.approx(0.004), "from where the schedule had brought it"
    assert (group(tmp_path)["initial_lr"], group(tmp_path)["weight_decay"]) == (0.008, 0.1)
    assert state(str(tmp_path))["optimizer_states"][0]["state"][0]["step"] == 14
    assert "settings win" not in fit(app, str(tmp_path), 3, *more).err, "it is what the run is trained with by now"


def test_a_schedule_that_is_too_short_for_more_epochs_is_one_sentence_and_can_be_made_longer(
    app: App, tmp_path: Path
) -> None:
    assert fit(app, str(tmp_path), 1, *asked(schedule="OneCycleLR")).status == 0
    ended = fit(app, str(tmp_path), 2, *asked(schedule="OneCycleLR"))
    assert ended.status == 2
    assert "OneCycleLR.total_steps=7, not 14" in ended.err
    assert "the learning rate schedule ends before training does" in ended.err
    assert "--override_optimizer true takes the longer schedule" in ended.err
    assert "Traceback" not in ended.err
    ended = fit(app, str(tmp_path), 2, *asked(schedule="OneCycleLR"), "--override_optimizer=true")
    assert ended.status == 0, ended.err
    assert state(str(tmp_path))["global_step"] == 14


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({}, {"optimizer": "SGD"}, "returns another optimizer (SGD) than the checkpoint holds the state of (Adam)"),
        ({}, {"groups": 2}, "configure_optimizers returns other parameters or groups than the checkpoint"),
        ({"groups": 2}, {}, "configure_optimizers returns other parameters or groups than the checkpoint"),
        (
            {},
            {"schedule": "StepLR"},
            "another learning rate schedule (StepLR) than",
        ),
        ({"schedule": "StepLR"}, {"schedule": "ExponentialLR"}, "holds the state of (StepLR)"),
        (
            {"schedule": "StepLR"},
            {},
            "another learning rate schedule (none) than",
        ),
    ],
)
def test_another_optimizer_or_schedule_is_one_sentence_and_costs_nothing(
    app: App, tmp_path: Path, before: dict[str, Any], now: dict[str, Any], words: str
) -> None:
    assert fit(app, str(tmp_path), 1, *asked(**before)).status == 0
    kept = {name: value for name, value in listing(str(tmp_path)).items() if "/logs/" not in name}
    ended = fit(app, str(tmp_path), 2, *asked(**now))
    assert ended.status == 2, ended.err
    assert words in ended.err
    assert "--weights" in ended.err
    assert "Traceback" not in ended.err
    assert {name: value for name, value in listing(str(tmp_path)).items() if "/logs/" not in name} == kept
