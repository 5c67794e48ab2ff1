"""The device itself: the CUDA stack that torch was built on, whether it computes, and a preflight of this node."""

import re
import shutil
import subprocess

import torch
import torch.distributed as dist

from pipeline.commands.preflight.network import preflight
from pipeline.commands.preflight.node import NodeRequirements
from pipeline.process.topology import Topology
from tests.benchmarks.processes import forked
from tests.gpu_check.check import NEEDS_A_DEVICE, CheckFailed, Figures, NotMeasured, Setting, check
from tests.support.commands import ROOT

_PRODUCT = 1024
_FLOAT32, _BF16 = 1e-5, 1e-2
"""How far a product may be from float64's, relative to its greatest number; TF32, off by default, is further."""


def driver() -> str:
    """The version of the driver, as nvidia-smi has it."""
    if shutil.which("nvidia-smi") is None:
        return "unknown (no nvidia-smi)"
    asked = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    return ended.stdout.partition("\n")[0].strip() or "unknown"


def products(device: str) -> dict[str, float]:
    """How far products of matrices on a device are from the CPU's in float64, relative to its greatest number."""
    left, right = (
        torch.rand(2, _PRODUCT, _PRODUCT, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    )
    exact = left @ right
    found = {}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        product = (left.to(device, dtype) @ right.to(device, dtype)).cpu().double()
        found[f"{name} product, error"] = float((product - exact).abs().max() / exact.abs().max())
    return found


def reduced(device: str) -> float:
    """What the sum over one rank, itself, makes of 3: the communication library loads, and launches a kernel."""
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    value = torch.full((1024,), 3.0, device=device)
    dist.all_reduce(value)
    dist.destroy_process_group()
    return float(value.max())


def describe() -> Figures:
    """Versions and sizes of what is there."""
    properties = torch.cuda.get_device_properties(0)
    image = re.search(r"^ARG BASE_IMAGE=(\S+)", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)
    return {
        "torch": torch.__version__,
        "CUDA of torch": str(torch.version.cuda),
        "base image": image[1] if image else "unknown",
        "driver": driver(),
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())),
        "cuDNN": str(torch.backends.cudnn.version()),
        "memory, GB": properties.total_memory / 1e9,
        "capability": f"sm_{properties.major}{properties.minor}",
        "kernels for": " ".join(torch.cuda.get_arch_list()),
        "devices": torch.cuda.device_count(),
    }


def examine(device: str) -> Figures:
    return {**(describe() if device == "cuda" else {}), **products(device), "sum over NCCL": reduced(device)}


@check("stack")
def stack(setting: Setting) -> Figures:
    """The CUDA stack: versions, products of matrices beside the CPU's, a sum by NCCL."""
    found: Figures = forked(examine, setting.device, log=setting.log, limit=120)
    wrong = [
        f"{name} is {found[name]:.2g}, more than {most:g}"
        for name, most in (("float32 product, error", _FLOAT32), ("bf16 product, error", _BF16))
        if not float(found[name]) <= most
    ]
    if found["sum over NCCL"] != 3.0:
        wrong.append(f"the sum over NCCL is {found['sum over NCCL']}, not 3")
    if wrong:
        raise CheckFailed("; ".join(wrong), found)
    if setting.card is None:
        raise NotMeasured(NEEDS_A_DEVICE)
    return found


@check("preflight")
def node(setting: Setting) -> Figures:
    """`python -m pipeline preflight` of this node."""
    required = NodeRequirements(gpus=setting.pick(0, 1))
    report, status = forked(
        lambda: preflight(required, str(setting.folder / "preflight"), 30, Topology.from_environment()),
        log=setting.log,
        limit=60,
    )
    found = " ".join(report.split())
    if status != 0:
        raise CheckFailed(f"status {status}: {found}")
    return {"report": found}
