"""What the user asked for: the run's own configuration, and every mistake that the parsed one shows by itself."""

import argparse
import inspect
import re
import sys
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from pipeline.config import compatibility as drift
from pipeline.errors import UserError, chain, did_you_mean
from pipeline.process.preemption import GRACE, default_grace
from pipeline.process.topology import Topology
from pipeline.run.run_dir import RunDir, run_dir_problem
from pipeline.run.storage_errors import raise_for_user

FROM_RUN = ("validate", "test", "predict")
"""Subcommands that take model and data from the run's own fit.yaml."""


def add_flags(parser: LightningArgumentParser, subcommand: str) -> None:
    """The flags that this project adds to those of a subcommand of Lightning's."""
    if subcommand != "summary":
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="The run directory: a local path or any fsspec URL (s3://bucket/run). The same one goes on where "
            "it stopped. Default for fit: the next free runs/<name>-<n>.",
        )
    if subcommand == "fit":
        parser.add_argument(
            "--grace",
            type=float,
            default=default_grace(),
            help="Seconds between SIGTERM and the end, within which the last step is saved. Default: "
            f"{GRACE}, which torch's agent sets, else 30.",
        )
        parser.add_argument(
            "--collective_timeout",
            type=float,
            default=120.0,
            help="Seconds that a rank waits for the others in one collective operation before it gives up, so that "
            "all are started again: longer than the longest that one rank does while the others wait.",
        )
        parser.add_argument(
            "--allow_mismatch",
            type=str | None,
            default=None,
            help="Differences from the run that would stop a resume, but are meant, separated by commas: "
            f"{', '.join(drift.DANGEROUS)}.",
        )
    if subcommand in FROM_RUN:
        parser.add_argument(
            "--checkpoint",
            type=str | None,
            default=None,
            help="Which checkpoint of the run: best, latest or a step. Default: the best where a metric was "
            "monitored, else the latest.",
        )


def with_run_config(arguments: list[str]) -> list[str]:
    """Let the subcommands that look at a run start from the configuration that it was trained with.

    It goes before the user's own flags, so they override it. For validate, test and predict only what makes model and
    data is taken: the rest of training's configuration (callbacks, limits, topology) is not evaluation's. For
    explain_resume it is all of it, unless the user names a configuration, as the next fit would.
    """
    explaining = arguments[:1] == ["explain_resume"]
    if not arguments or (arguments[0] not in FROM_RUN and not explaining):
        return arguments
    if explaining and any(argument.startswith(("-c", "--config", "--model=")) for argument in arguments[1:]):
        return arguments
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--run_dir")
    try:
        url = finder.parse_known_args(arguments[1:])[0].run_dir
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    if url is None:
        if not any(argument.startswith(("-c", "--config", "-h", "--help", "--model")) for argument in arguments[1:]):
            raise UserError(f"run_dir is missing: name the run whose model and data to {arguments[0]}, --run_dir <url>")
        return arguments
    run = RunDir(url)
    try:
        saved = saved_config(run, "fit")
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        raise_for_user(error, f"run_dir={url!r} cannot be read", "Fix the name, or this user's permissions there")
    if saved is None:
        raise UserError(
            f"run_dir={url!r} holds no fit.yaml: nothing was trained there. Train first, or name the right directory"
        )
    if explaining:
        base = {key: value for key, value in saved.items() if key != "ckpt_path"}
        return [arguments[0], "--config", dump(base).decode(), *arguments[1:]]
    base = {key: saved[key] for key in ("seed_everything", "model", "data") if saved.get(key) is not None}
    base["trainer"] = {key: saved["trainer"][key] for key in ("accelerator", "precision")}
    return [arguments[0], "--config", dump(base).decode(), *arguments[1:]]


def problems(subcommand: str, config: Namespace, ckpt_path: str | None, topology: Topology) -> list[str]:
    """What the user must change, known from the configuration alone; all of it at once."""
    found = []
    trainer = config.trainer
    if subcommand == "test" and topology.world_size > 1:
        found.append(
            f"WORLD_SIZE={topology.world_size}: test scores each sample once only in one process on one device, for "
            "DDP pads uneven shards with doubles. Start it as one process: torchx component components/evaluate.py, "
            "or python -m pipeline test without torchrun"
        )
    for name, launched in (("devices", topology.processes), ("num_nodes", topology.nodes)):
        value = trainer[name]
        count = len(value) if isinstance(value, list) else value
        if str(count) not in (str(launched), "auto", "-1"):
            found.append(
                f"trainer.{name}={value!r}, but the launcher started {launched}: topology belongs to the launcher. "
                "Leave it out, and set --nodes and --processes of the component, or torchrun's --nnodes and "
                "--nproc_per_node"
            )
        trainer[name] = launched
    strategy = trainer.strategy if isinstance(trainer.strategy, str) else trainer.strategy.get("class_path", "")
    if not re.fullmatch(r"auto|ddp(_find_unused_parameters_(true|false))?|(.*\.)?(DDP|SingleDevice)Strategy", strategy):
        found.append(
            f"trainer.strategy={strategy!r}: allowed are 'auto' and 'ddp' with its variants, whose checkpoint is one "
            "file that any number of devices reads; sharded strategies (FSDP, DeepSpeed) save many"
        )
    found += _of_training(config, topology)
    if ckpt_path in ("best", "last", "hpc", "registry"):
        hint = "Leave it out: fit goes on by itself" if subcommand == "fit" else "Use --checkpoint best|latest|<step>"
        found.append(f"ckpt_path={ckpt_path!r}: give the URL of a checkpoint file. {hint}")
    if ckpt_path is not None and config.get("checkpoint") is not None:
        found.append(f"ckpt_path={ckpt_path!r} and checkpoint={config.checkpoint!r} both name a checkpoint: give one")
    if config.run_dir is not None and (problem := run_dir_problem(str(config.run_dir))):
        found.append(problem)
    if subcommand == "explain_resume" and config.run_dir is None:
        found.append("run_dir is missing: name the run whose resume to explain, --run_dir <url>")
    if subcommand == "test" and config.run_dir is None and not trainer.fast_dev_run:
        found.append("run_dir is missing: name the run to evaluate, --run_dir <url>; its receipt goes there")
    return found


def _of_training(config: Namespace, topology: Topology) -> list[str]:
    trainer, found = config.trainer, []
    if trainer.overfit_batches and topology.world_size > 1:
        found.append(
            f"trainer.overfit_batches={trainer.overfit_batches}: Lightning would give every one of the "
            f"{topology.world_size} processes the same samples, and nothing would say so. Try it in one process"
        )
    if trainer.accumulate_grad_batches < 1:
        found.append(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: allowed are 1 and more batches"
        )
    per_step = ((config.get("data") or {}).get("init_args") or {}).get("global_batch_size")
    if per_step is not None and "GradientAccumulationScheduler" in str(trainer.callbacks):
        found.append(
            f"data.global_batch_size={per_step}: GradientAccumulationScheduler changes the batches per step, so that "
            "it could not be kept. Use data.batch_size, or leave the callback out"
        )
    for name in ("grace", "collective_timeout"):
        if (seconds := config.get(name)) is not None and seconds <= 0:
            found.append(f"{name}={seconds:g}: allowed are numbers of seconds above 0")
    try:
        drift.accepted(config.get("allow_mismatch"))
    except UserError as error:
        found += error.problems
    return found


def explain(
    error: argparse.ArgumentError, subparsers: dict[str, LightningArgumentParser], arguments: Sequence[str]
) -> str:
    """The parser's complaint in one line: name, value, reason, and the nearest allowed name for a misspelt one."""
    subcommand = arguments[0] if arguments and arguments[0] in subparsers else ""
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    text = " ".join(lines)
    keys = re.findall(r'Parser key "([^"]+)"', text)
    if keys:
        # A type that may be one of several is refused once for each of them; what None would have been says nothing.
        noise = r"Parser key|Does not validate|Subtypes:|Errors:|Given value|Problem with given class_path|.*'NoneType'"
        reasons = [re.sub(r"<class '([\w.]+)'>", r"\1", line) for line in lines if line and not re.match(noise, line)]
        # The value that did not fit is the innermost, which comes first.
        values = [line.removeprefix("Given value: ") for line in lines if line.startswith("Given value: ")]
        value = f"={values[0]!r}" if values and len(values[0]) < 100 and "NestedArg" not in values[0] else ""
        classes = re.findall(r"Problem with given class_path '([^']+)'", text)
        where = f" for {classes[-1]}" if classes else ""
        # The last key's line may itself say what is wrong.
        reasons += re.findall(r'Parser key "[^"]+": (?!Does not|Problem)(\S.*)', str(error))
        text = f"{'.'.join(keys)}{value}{where}: {', '.join(dict.fromkeys(reasons)) or 'not accepted'}"
    misspelt = re.search(r"(?:arguments: --|option '|Option ')([\w.]+)", text)
    if misspelt:
        text += did_you_mean(misspelt[1], _known(subparsers.get(subcommand), text))
    return (
        f"{text} (python -m pipeline {subcommand or '--help'}{' --help' if subcommand else ''} shows what is allowed)"
    )


def _known(parser: LightningArgumentParser | None, text: str) -> set[str]:
    """The names that would be allowed in the place of a misspelt one."""
    owner = re.search(r" for ([\w.]+): Option", text)
    if owner:
        module, _, name = owner[1].rpartition(".")
        return set(inspect.signature(getattr(sys.modules[module], name)).parameters)
    actions = parser._actions if parser is not None else []
    return {option.lstrip("-") for action in actions for option in (action.dest, *action.option_strings)}


def cause(error: BaseException) -> UserError:
    """What a constructor refused, from under the parser's own words about the types that it tried."""
    causes = chain(error)
    for each in reversed(causes):
        if isinstance(each, UserError):
            return each
    # The innermost one may be a detail of how a library found out; what was raised on purpose is a ValueError.
    named = [each for each in causes if isinstance(each, ValueError)]
    return UserError(" ".join(str(named[-1] if named else error).split()))


def same_model(run: RunDir, saved: dict[str, Any] | None, resolved: dict[str, Any], wholly: bool = False) -> None:
    """Refuse to load a run's checkpoint into another model: another class, or where `wholly` other arguments."""
    trained, asked = (saved or {}).get("model"), resolved["model"]
    if trained is None:
        return
    if trained["class_path"] != asked["class_path"]:
        raise UserError(
            f"model.class_path={asked['class_path']!r}, but {run} was trained with {trained['class_path']!r}: give the "
            "run's own configuration, or another --run_dir"
        )
    if wholly and trained != asked:
        ours, theirs = asked.get("init_args") or {}, trained.get("init_args") or {}
        raise UserError(
            *(
                f"model.{key}={ours.get(key)!r}, but {run} was trained with {theirs.get(key)!r}: leave the flag out, "
                "the model comes from the run"
                for key in {**theirs, **ours}
                if ours.get(key) != theirs.get(key)
            )
        )


def changes(saved: dict[str, Any] | None, asked: dict[str, Any]) -> list[str]:
    """What a configuration changes of the one that was saved, `key old -> new` each."""

    def flat(value: Any, key: str) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {key: value}
        return {name: leaf for part in value for name, leaf in flat(value[part], f"{key}.{part}".lstrip(".")).items()}

    if saved is None:
        return []
    left, right = flat(saved, ""), flat(asked, "")
    return [
        f"{key} {left.get(key)!r} -> {right.get(key)!r}"
        for key in dict.fromkeys((*left, *right))
        if left.get(key) != right.get(key)
    ]


def saved_config(run: RunDir, subcommand: str) -> dict[str, Any] | None:
    """The resolved configuration that a subcommand left in its run, or None.

    Raises:
        UserError: It is damaged or foreign.
    """
    data = run.read(RunDir.config(subcommand))
    if data is None:
        return None
    try:
        value = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise UserError(f"{run}/{RunDir.config(subcommand)} is damaged: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict) or not isinstance(value.get("trainer"), dict):
        raise UserError(f"{run}/{RunDir.config(subcommand)} is not a configuration that this program wrote")
    return value


def resolved(parsed: dict[str, Any], ckpt_path: str | None) -> dict[str, Any]:
    """A whole configuration without what belongs to the launcher, the place and a single start.

    Args:
        parsed: With every default; it is changed.
        ckpt_path: What the user gave for it.
    """
    for key in ("config", "run_dir", "allow_mismatch", "world_size", "grace", "collective_timeout"):
        parsed.pop(key, None)
    for key in ("devices", "num_nodes"):
        parsed["trainer"].pop(key, None)
    parsed["ckpt_path"] = ckpt_path
    return parsed


def dump(config: dict[str, Any]) -> bytes:
    """A configuration as YAML."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()


def run_name(config: Namespace) -> str:
    """`digits` for --config .../digits.yaml, else the model's class in lower case."""
    files = config.get("config") or []
    named = [str(file) for file in files if file is not None]
    if named:
        return re.sub(r"\W+", "-", named[-1].rsplit("/", 1)[-1].rsplit(".", 1)[0])
    return str(config.model.class_path).rsplit(".", 1)[-1].lower()


class Save(pl.Callback):
    """Writes fit.yaml once the model stands and the checkpoint fits it: a mistake must not replace a good one.

    Args:
        run: Where to write it.
        resolved: What was asked for.
    """

    def __init__(self, run: RunDir, resolved: dict[str, Any]) -> None:
        self.run = run
        self.resolved = resolved

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it on rank 0."""
        if trainer.is_global_zero:
            self.run.write(RunDir.config("fit"), dump(self.resolved))
