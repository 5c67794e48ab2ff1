"""A stage is followed to its end, also while its scheduler does not answer for a while."""

from types import SimpleNamespace
from typing import Any

import pytest
from torchx.specs import AppDef, AppState, AppStatus

from components import stages
from components.stages import LaunchTarget, run_stage


class Engine:
    """A scheduler that runs nothing, and answers as it is told: a state, or an exception."""

    def __init__(self, *answers: AppState | Exception | None) -> None:
        self.answers = list(answers)
        self.cancelled: list[str] = []

    def run(self, *_: Any, **__: Any) -> str:
        return "local_docker://torchx/app"

    def status(self, handle: str) -> AppStatus | None:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return AppStatus(answer) if answer is not None else None

    def cancel(self, handle: str) -> None:
        self.cancelled.append(handle)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_LOCAL_POLL", 0.001)


def follow(engine: Engine) -> tuple[int, str]:
    target = LaunchTarget(engine, "local_docker")  # type: ignore[arg-type]
    app = AppDef("train")
    app.roles = [SimpleNamespace(image="image", num_replicas=0, name="train")]  # type: ignore[list-item]
    return run_stage(app, target, "runs/none")


def test_an_engine_that_answers_late_under_load_stops_no_training(capsys: pytest.CaptureFixture[str]) -> None:
    away = TimeoutError("read timed out. (read timeout=60)")
    engine = Engine(AppState.RUNNING, away, away, AppState.RUNNING, AppState.SUCCEEDED)
    assert follow(engine) == (0, "done")
    assert engine.cancelled == []
    assert capsys.readouterr().err.count("train: its status cannot be read now: ") == 1


def test_an_engine_that_is_gone_for_good_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_UNANSWERED", 0.05)
    engine = Engine(AppState.RUNNING, ConnectionError("refused"))
    with pytest.raises(ConnectionError):
        follow(engine)
    assert engine.cancelled


def test_a_stage_that_somebody_deleted_is_gone_and_not_said_to_run() -> None:
    engine = Engine(AppState.RUNNING, None)
    status, how = follow(engine)
    assert (status, how[:51]) == (130, "is gone: local_docker no longer knows it; if it was")
    assert engine.cancelled == []
