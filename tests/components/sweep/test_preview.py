"""Which metric trials are compared by, and what it takes to have fit monitor it."""

import pytest

from components.sweep import preview as module
from components.sweep.preview import MonitoredMetric, chosen_metric, preview
from pipeline.errors import UserError

LOSS = MonitoredMetric("val_loss", "min")


@pytest.mark.parametrize(
    ("found", "name", "mode", "metric", "flags"),
    [
        (LOSS, "", "", LOSS, 0),
        (LOSS, "val_loss", "", LOSS, 0),
        (MonitoredMetric("acc", "max"), "acc", "", MonitoredMetric("acc", "max"), 0),
        (LOSS, "acc", "max", MonitoredMetric("acc", "max"), 2),
        (MonitoredMetric("acc", "max"), "val_loss", "", LOSS, 2),
        (LOSS, "", "max", MonitoredMetric("val_loss", "max"), 2),
        (MonitoredMetric("", "min"), "acc", "max", MonitoredMetric("acc", "max"), 2),
        (None, "acc", "", MonitoredMetric("acc", "min"), 2),
    ],
)
def test_fit_is_made_to_monitor_what_trials_are_compared_by(
    found: MonitoredMetric | None, name: str, mode: str, metric: MonitoredMetric, flags: int
) -> None:
    chosen, own = chosen_metric(found, name, mode)
    assert chosen == metric
    assert own == [f"--checkpoints.monitor={metric.name}", f"--checkpoints.mode={metric.mode}"][:flags]


@pytest.mark.parametrize(
    ("found", "words"), [(MonitoredMetric("", "min"), "monitors none"), (None, "this machine cannot read")]
)
def test_no_metric_is_a_mistake_that_says_what_to_give(found: MonitoredMetric | None, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        chosen_metric(found, "", "")
    assert "--metric" in str(caught.value)


def test_a_configuration_for_an_image_is_no_mistake_of_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def printed(command: list[str]) -> tuple[list[str], str]:
        asked.append(command)
        return ["model: no module named theirs"], ""

    monkeypatch.setattr(module, "_printed", printed)
    assert preview("c.yaml", "r/0001", [], [("model.a", 1)], here=False) is None
    assert [command[-1] for command in asked] == ["--model.a=1", "r/0001"]
    with pytest.raises(UserError, match="no module named theirs"):
        preview("c.yaml", "r/0001", [], [("model.a", 1)], here=True)


def test_without_torch_here_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert preview("c.yaml", "r/0001", [], [], here=True) is None
