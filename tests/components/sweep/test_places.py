"""As many trials at once as this machine has room for, each on devices of its own."""

import os
from typing import Any

import pytest

from components.sweep.places import own_devices, places
from pipeline.errors import UserError


def asking(**more: Any) -> dict[str, Any]:
    return {"nodes": "1", "cpu": 2, "gpu": 0, **more}


@pytest.mark.parametrize(
    ("cores", "cpu", "nodes", "at_once"), [(8, 2, "1", 4), (8, 2, "2", 2), (8, 3, "1:2", 1), (1, 4, "1", 1)]
)
def test_cores_are_shared(cores: int, cpu: int, nodes: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert places("local_cwd", asking(cpu=cpu, nodes=nodes), None) == at_once
    assert places("local_docker", asking(cpu=cpu, nodes=nodes), 7) == 7


def test_each_trial_has_devices_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,9")
    two = asking(gpu=2)
    assert places("local_cwd", two, None) == 2
    assert [own_devices("local_cwd", two, place) for place in (0, 1)] == [
        *({"CUDA_VISIBLE_DEVICES": "4,5"}, {"CUDA_VISIBLE_DEVICES": "6,7"})
    ]
    assert own_devices("local_docker", two, 1) == {}, "its scheduler hands them out"
    assert own_devices("slurm", two, 1) == {}
    with pytest.raises(UserError, match="parallel=3 trials of nodes=1 with gpu=2: the 5 devices here are enough for 2"):
        places("local_cwd", two, 3)
    assert places("local_cwd", asking(gpu=1, nodes="2"), None) == 1, "both nodes would have the same ones"


@pytest.mark.parametrize("scheduler", ["slurm", "kubernetes_job"])
def test_a_cluster_has_as_many_places_as_the_user_says(scheduler: str) -> None:
    assert places(scheduler, asking(gpu=8, nodes="4"), 16) == 16
    with pytest.raises(UserError, match=f"--parallel how many trials may run at once on {scheduler}"):
        places(scheduler, asking(), None)
