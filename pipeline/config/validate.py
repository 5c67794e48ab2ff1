"""What the user must change, as far as the parsed configuration shows it by itself."""

import math
import re

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from pipeline.config.compatibility import parse_allowed
from pipeline.errors import UserError
from pipeline.process.notification import target_of, target_problem
from pipeline.process.patience import away_limit_problem
from pipeline.process.topology import Topology
from pipeline.run.run_dir import run_dir_problem
from pipeline.training.logs.step_profile import window, window_problem

_STRATEGIES = r"auto|ddp(_find_unused_parameters_(true|false))?|(.*\.)?(DDP|SingleDevice)Strategy"

_LARGEST_PORT = 65535


def find_problems(subcommand: str, config: Namespace, ckpt_path: str | None, topology: Topology) -> list[str]:
    """Return everything that the user must change, and set the Trainer's topology to the launcher's.

    Args:
        subcommand: One of Lightning's.
        config: Its parsed configuration.
        ckpt_path: What the user gave for it.
        topology: How many processes the launcher started.
    """
    found = _topology_problems(subcommand, config, topology)
    strategy = config.trainer.strategy
    strategy = strategy if isinstance(strategy, str) else strategy.get("class_path", "")
    if not re.fullmatch(_STRATEGIES, strategy):
        found.append(
            f"trainer.strategy={strategy!r} must be 'auto', or 'ddp' or one of its variants, whose checkpoint is one "
            "file that any number of devices reads; sharded strategies (FSDP, DeepSpeed) save many"
        )
    found += [*_training_problems(config, topology), *_value_problems(config)]
    notify = target_problem(config.notify or target_of(()))
    found += filter(None, [away_limit_problem(config.away_limit), _profile_problem(config), notify])
    if ckpt_path in ("best", "last", "hpc", "registry"):
        hint = "Leave it out: fit resumes by itself" if subcommand == "fit" else "Use --checkpoint best|latest|<step>"
        found.append(f"ckpt_path={ckpt_path!r} must be the URL of a checkpoint file. {hint}")
    if ckpt_path is not None and config.get("checkpoint") is not None:
        found.append(f"ckpt_path={ckpt_path!r} and checkpoint={config.checkpoint!r} both name a checkpoint: give one")
    found += _weights_problems(config, ckpt_path)
    if config.run_dir is not None and (problem := run_dir_problem(str(config.run_dir))):
        found.append(problem)
    if subcommand in ("test", "predict") and config.run_dir is None and not config.trainer.fast_dev_run:
        what = "the run to evaluate, --run_dir <url>; its receipt goes there"
        if subcommand == "predict":
            what = "the run that predicts, --run_dir <url>; the predictions go there"
        found.append(f"run_dir is missing: name {what}")
    return found


def _profile_problem(config: Namespace) -> str | None:
    asked = config.get("profile")
    if window(asked) is not None and config.trainer.fast_dev_run:
        return f"profile={asked!r}: fast_dev_run writes nothing. Leave one of them out"
    return window_problem(asked)


def require_batchnorm_device(config: Namespace, trainer: pl.Trainer, model: pl.LightningModule) -> None:
    """Refuse BatchNorm over all ranks where it does not exist: torch would fail in the first step.

    Raises:
        UserError: The ranks are on CPUs.
    """
    kinds, strategy = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), trainer.strategy
    on_cpus = isinstance(strategy, DDPStrategy) and strategy.root_device.type == "cpu"
    if config.trainer.sync_batchnorm and on_cpus and any(isinstance(module, kinds) for module in model.modules()):
        raise UserError(
            "trainer.sync_batchnorm=True: torch synchronizes BatchNorm over GPUs only, and these ranks are on CPUs. "
            "Leave it out here, or use GPUs (trainer.accelerator=gpu)"
        )


def _value_problems(config: Namespace) -> list[str]:
    """Return values that Lightning refuses by a traceback of its own, or only in the middle of a start."""
    trainer, found = config.trainer, []
    if trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        found.append(
            f"trainer.accelerator={trainer.accelerator!r}: torch {torch.__version__} can use no GPU here. Use 'auto' "
            "or 'cpu', or a build of torch with CUDA, its driver, and a container that is given GPUs"
        )
    if trainer.check_val_every_n_epoch is not None and trainer.check_val_every_n_epoch < 1:
        found.append(f"trainer.check_val_every_n_epoch={trainer.check_val_every_n_epoch} must be >= 1, or null")
    if trainer.val_check_interval == 0:
        found.append(
            "trainer.val_check_interval=0 must be > 0: a share of an epoch such as 0.5, or a number of batches. "
            "trainer.limit_val_batches=0 turns validation off"
        )
    return found


def _topology_problems(subcommand: str, config: Namespace, topology: Topology) -> list[str]:
    found = []
    if subcommand == "test" and topology.world_size > 1:
        found.append(
            f"WORLD_SIZE={topology.world_size}: test scores each sample once only in one process on one device, since "
            "DDP pads uneven shards with duplicates. Start one process: torchx run evaluate, or "
            "python -m pipeline test without torchrun"
        )
    for name, launched in (("devices", topology.processes), ("num_nodes", topology.nodes)):
        value = config.trainer[name]
        count = len(value) if isinstance(value, list) else value
        if isinstance(value, list) and value != list(range(launched)):
            found.append(
                f"trainer.{name}={value!r}: which devices are used is the launcher's choice, here the first "
                f"{launched}. Leave it out, and name others by CUDA_VISIBLE_DEVICES"
            )
        elif str(count) not in (str(launched), "auto", "-1"):
            found.append(
                f"trainer.{name}={value!r}, but the launcher started {launched}: topology belongs to the launcher. "
                "Leave it out, and set --nodes and --processes of the component, or torchrun's --nnodes and "
                "--nproc_per_node"
            )
        config.trainer[name] = launched
    return found


def _weights_problems(config: Namespace, ckpt_path: str | None) -> list[str]:
    weights, allowed = config.get("weights"), config.get("weights_allow")
    if weights is not None and ckpt_path is not None:
        return [
            f"weights={weights!r} and ckpt_path={ckpt_path!r} both say what to start from: give --weights for a new "
            "training from those weights, or --ckpt_path to resume the other program's training (--weights null takes "
            "back what a configuration says)"
        ]
    if weights is not None and not weights.strip():
        return [f"weights={weights!r} must be the URL of a file or of a run directory"]
    if allowed is not None and weights is None:
        return [f"weights_allow={allowed!r} says what may differ in --weights, which is not given: give both or none"]
    return []


def _training_problems(config: Namespace, topology: Topology) -> list[str]:
    trainer, found = config.trainer, []
    if trainer.overfit_batches and topology.world_size > 1:
        found.append(
            f"trainer.overfit_batches={trainer.overfit_batches}: Lightning would give each of the "
            f"{topology.world_size} processes the same samples without a warning. Use it with one process"
        )
    if trainer.accumulate_grad_batches < 1:
        found.append(f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} must be >= 1")
    per_step = ((config.get("data") or {}).get("init_args") or {}).get("global_batch_size")
    if per_step is not None and "GradientAccumulationScheduler" in str(trainer.callbacks):
        found.append(
            f"data.global_batch_size={per_step}: GradientAccumulationScheduler changes the batches per step, so that "
            "it could not be kept. Use data.batch_size, or leave the callback out"
        )
    for name in ("grace", "collective_timeout"):
        if (seconds := config.get(name)) is not None and seconds <= 0:
            found.append(f"{name}={seconds:g} must be a number of seconds > 0")
    if (every := config.get("telemetry_every")) is not None and not 0 <= every < math.inf:
        found.append(f"telemetry_every={every:g} must be a number of seconds >= 0; 0 turns telemetry off")
    if (port := config.get("metrics_port")) is not None and not 0 < port <= _LARGEST_PORT:
        found.append(f"metrics_port={port} must be a port between 1 and {_LARGEST_PORT}")
    try:
        parse_allowed(config.get("allow_mismatch"))
    except UserError as error:
        found += error.problems
    return found
