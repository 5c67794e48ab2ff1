"""Which devices are asked for is understood in every form that Lightning takes, whether they are here or not."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.commands.inspection.asked_devices import AskedDevices
from pipeline.errors import UserError

GIB = 1 << 30


def asked(
    accelerator: Any = "auto", devices: Any = 1, nodes: int = 1, strategy: Any = "auto", **more: Any
) -> AskedDevices:
    trainer = SimpleNamespace(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy)
    return AskedDevices.of(trainer, **more)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs."""
    sizes = [SimpleNamespace(total_memory=80 * GIB), SimpleNamespace(total_memory=40 * GIB)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda at: sizes[at])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda at: "a GPU")


@pytest.fixture
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("devices", "count"), [(3, 3), ("3", 3), ([0, 2], 2), ("0,2", 2), ("1,", 1), ("auto", 1), (-1, 1), ("-1", 1)]
)
@pytest.mark.usefixtures("no_gpus")
def test_devices_are_counted_in_every_form(devices: Any, count: int) -> None:
    assert asked(devices=devices, nodes=2).world_size == 2 * count


@pytest.mark.parametrize("devices", ["auto", -1])
@pytest.mark.usefixtures("gpus")
def test_all_gpus_are_those_that_are_here(devices: Any) -> None:
    found = asked(devices=devices)
    assert (found.processes, found.memory, found.source, found.accelerator) == (2, 40 * GIB, "a GPU", "auto")


@pytest.mark.usefixtures("gpus")
def test_a_cpu_that_is_asked_for_beside_gpus_is_a_cpu() -> None:
    found = asked("cpu")
    assert (found.accelerator, found.source) == ("cpu", "this machine")


@pytest.mark.parametrize("accelerator", ["cuda", "gpu"])
@pytest.mark.usefixtures("no_gpus")
def test_gpus_that_are_asked_for_and_absent_are_said_to_be(accelerator: str) -> None:
    found = asked(accelerator, devices=8)
    assert (found.accelerator, found.memory, found.world_size) == ("cpu", None, 8)
    assert f"trainer.accelerator={accelerator!r}" in str(found.absent)
    assert "--device_memory" in found.source


@pytest.mark.usefixtures("no_gpus")
def test_devices_that_are_elsewhere_have_the_memory_that_is_named() -> None:
    found = asked("cuda", devices=8, device_memory="80GB")
    assert (found.memory, found.source) == (80 * 10**9, "device_memory")


@pytest.mark.usefixtures("no_gpus")
def test_processes_on_cpus_share_the_memory_of_the_machine() -> None:
    one, four = asked("cpu"), asked("cpu", devices=4)
    assert four.memory == one.memory // 4 > 0


@pytest.mark.parametrize("devices", ["two", [], 0, "0,x", ""])
@pytest.mark.usefixtures("no_gpus")
def test_what_is_no_number_of_devices_is_refused(devices: Any) -> None:
    with pytest.raises(UserError, match=r"trainer\.devices="):
        asked(devices=devices)


def test_no_nodes_are_refused() -> None:
    with pytest.raises(UserError, match=r"trainer\.num_nodes=0 must be >= 1"):
        asked(nodes=0)


@pytest.mark.parametrize(
    ("strategy", "shares"),
    [
        ("ddp", True),
        ({"class_path": "DDPStrategy", "init_args": {"gradient_as_bucket_view": False}}, False),
        ({"class_path": "DDPStrategy", "dict_kwargs": {"gradient_as_bucket_view": False}}, False),
        ({"class_path": "DDPStrategy", "init_args": {"process_group_backend": "gloo"}}, True),
    ],
)
def test_gradients_share_memory_with_buckets_unless_a_strategy_says_otherwise(strategy: Any, shares: bool) -> None:
    assert asked(strategy=strategy).shares_gradients is shares
