"""Stages beside each other on any launcher: found by name, cancelled alone, left or cancelled in the end."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from torchx.specs import AppDef, AppState, AppStatus

from components import stages
from components.stages import LaunchTarget
from components.sweep.pool import EndedStage, StagePool
from pipeline.errors import INTERRUPTED, USER_MUST_CHANGE, UserError


class Cluster:
    """A scheduler whose runs go on until they are told to end."""

    def __init__(self) -> None:
        self.states: dict[str, AppState] = {}
        self.submitted: list[str] = []

    def run(self, app: AppDef, scheduler: str, cfg: dict[str, Any], workspace: str | None = None) -> str:
        name = cfg.get("app_id", f"unnamed-{len(self.submitted)}")
        if app.name == "refused":
            raise UserError("no such partition")
        handle = f"{scheduler}://torchx/{name}"
        self.submitted.append(name)
        self.states[handle] = AppState.RUNNING
        return handle

    def status(self, handle: str) -> AppStatus | None:
        return AppStatus(self.states[handle]) if handle in self.states else None

    def cancel(self, handle: str) -> None:
        self.states[handle] = AppState.CANCELLED

    def _scheduler_app_id(self, handle: str, check_session: bool) -> tuple[Any, str, str]:
        return SimpleNamespace(), "kubernetes_job", handle


def app(name: str = "train") -> AppDef:
    found = AppDef(name)
    found.roles = [SimpleNamespace(image="image", num_replicas=0, name="train")]  # type: ignore[list-item]
    return found


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(stages, "_POLL", 0.01)
    return Cluster()


def pool_of(cluster: Cluster, cancels: bool = True) -> StagePool:
    return StagePool(LaunchTarget(cluster, "kubernetes_job", cancels=cancels))  # type: ignore[arg-type]


def until_submitted(cluster: Cluster, number: int) -> None:
    waited = threading.Event()
    while len(cluster.submitted) < number:
        waited.wait(0.01)


@pytest.mark.timeout(30)
def test_a_stage_ends_alone_and_one_is_cancelled_alone(cluster: Cluster) -> None:
    pool = pool_of(cluster)
    for key in ("0001", "0002"):
        pool.start(key, app(), "runs/none", f"sweep-{key}-1")
    until_submitted(cluster, 2)
    assert sorted(cluster.submitted) == ["sweep-0001-1-train", "sweep-0002-1-train"]
    assert pool.next(0.05) is None
    cluster.states["kubernetes_job://torchx/sweep-0001-1-train"] = AppState.SUCCEEDED
    assert pool.next(5) == EndedStage("0001", 0, "done")
    pool.cancel("0002")
    assert pool.next(5) == EndedStage("0002", INTERRUPTED, "cancelled")
    assert cluster.states["kubernetes_job://torchx/sweep-0002-1-train"] is AppState.CANCELLED


@pytest.mark.timeout(30)
def test_a_stage_that_runs_under_its_name_is_followed_and_not_submitted_again(cluster: Cluster) -> None:
    first = pool_of(cluster, cancels=False)
    first.start("0001", app(), "runs/none", "sweep-0001-1")
    until_submitted(cluster, 1)
    first.close()
    assert cluster.states["kubernetes_job://torchx/sweep-0001-1-train"] is AppState.RUNNING, "left running"
    second = pool_of(cluster)
    second.start("0001", app(), "runs/none", "sweep-0001-1")
    assert second.next(0.1) is None
    assert len(cluster.submitted) == 1
    second.close()
    assert cluster.states["kubernetes_job://torchx/sweep-0001-1-train"] is AppState.CANCELLED


@pytest.mark.timeout(30)
def test_what_the_launcher_rejects_is_the_users_to_change(cluster: Cluster) -> None:
    pool = pool_of(cluster)
    pool.start("0001", app("refused"), "runs/none")
    assert pool.next(5) == EndedStage("0001", USER_MUST_CHANGE, "no such partition", submitted=False)
