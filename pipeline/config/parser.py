"""Lightning's command line, of which this project lets it parse and build; running comes after, in `pipeline.cli`."""

import argparse
import os
import random
import sys
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from jsonargparse import Namespace, dict_to_namespace, set_parsing_settings
from jsonargparse import Path as JsonargparsePath
from lightning.pytorch.callbacks import ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment

from pipeline.config import early_preparation, messages, saved_config
from pipeline.config.flags import INSPECTING, ONLY_FIT, WEIGHTS, add_flags
from pipeline.config.hyperparameters import remembered
from pipeline.data.datamodule import DataModule
from pipeline.errors import UserError
from pipeline.process import bottom_rows
from pipeline.process.log_format import OWN
from pipeline.process.topology import Topology
from pipeline.run.retry import patiently
from pipeline.run.storage_errors import storage_error
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.logs import console
from pipeline.training.logs.lines import Lines
from pipeline.training.logs.live_view import LiveView
from pipeline.training.logs.progress import TrainerProgress
from pipeline.training.step.step_compat import share_gradient_memory
from pipeline.training.trainer import Trainer, adapt

T = TypeVar("T")

# Lightning has defaults of a kind of text that YAML does not know, such as that of Timer's interval.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))

_PARSING: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}


class CommandLine(LightningCLI):
    """The configuration of one subcommand, parsed; `build` builds data, model and trainer.

    Args:
        arguments: The subcommand and its flags.
        topology: Where the launcher put this process.

    Attributes:
        asked: The parsed configuration of the subcommand.
        given_checkpoint: The `ckpt_path` that the user gave.
        progress: Of the trainer, once that is built.

    Raises:
        UserError: A flag is unknown, missing or not of its type.
    """

    def __init__(self, arguments: list[str], topology: Topology) -> None:
        set_parsing_settings(config_read_mode_fsspec_enabled=True)
        self.given_checkpoint: str | None = None
        self.progress = TrainerProgress()
        self._resolved: dict[str, Any] | None = None
        self._named = arguments[0] if arguments and arguments[0] in self.subcommands() else None
        super().__init__(
            args=[*arguments[:1], *saved_config.with_run_config("".join(arguments[:1]), arguments[1:])],
            trainer_class=Trainer,
            trainer_defaults={"devices": topology.processes, "num_nodes": topology.nodes},
            seed_everything_default=42,
            save_config_callback=None,
            parser_kwargs={
                **_PARSING,
                "prog": "python -m pipeline",
                **{name: {**_PARSING, "prog": f"python -m pipeline {name}"} for name in self.subcommands()},
            },
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's own, and those that look at a model and at data."""
        return {**LightningCLI.subcommands(), **{name: set() for name in INSPECTING}}

    @property
    def asked(self) -> Namespace:
        """The parsed configuration of the subcommand."""
        config: Namespace = self.config[self.subcommand]
        return config

    @property
    def weights_only(self) -> bool:
        """Whether to refuse a file that would execute pickled code."""
        return self.asked.weights_only is not False

    @property
    def source(self) -> Any:
        """What brings the loaders: the data module, or the model where there is none."""
        return self.model if self.datamodule is None else self.datamodule

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        if self._named not in (None, subcommand):  # nobody asks for its flags, and each takes a tenth of a second
            return self.init_parser(**kwargs)
        if subcommand in INSPECTING:  # none of their flags is an argument of the trainer's method
            parser = self.init_parser(**kwargs)
            if subcommand == "data":  # data that bring their loaders need no model
                stock = parser.add_lightning_class_args
                parser.add_lightning_class_args = partial(stock, required=False)  # type: ignore[method-assign]
            self._add_arguments(parser)
            self._subcommand_method_arguments[subcommand] = []
        else:
            parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        add_flags(parser, subcommand)
        # Only fit saves, but the same YAML file serves all of them.
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and report mistakes as this project does."""
        try:
            self.config = patiently("what the command line names", lambda: parser.parse_args(args))
        except argparse.ArgumentError as error:
            subcommand = args[0] if args and args[0] in self._subcommand_parsers else ""
            raise UserError(
                messages.parse_problem(error, self._subcommand_parsers.get(subcommand), subcommand)
            ) from error
        config = self.config[self.config.subcommand]
        seed = config.get("seed_everything")
        if isinstance(seed, int) and not isinstance(seed, bool) and not 0 <= seed < 1 << 32:
            raise UserError(f"seed_everything={seed} must be >= 0 and < 2**32")  # it is set before anything else
        given = [name for name in ONLY_FIT if any(f"--{name}" == argument.partition("=")[0] for argument in args)]
        if self.config.subcommand != "fit" and given:
            instead = f": {self.config.subcommand} takes --ckpt_path" if given[0] in WEIGHTS else ""
            raise UserError(f"{given[0]} is a flag of fit alone{instead}")
        # Lightning would merge the hyperparameters of a local checkpoint over the flags, and not those of a remote one.
        self.given_checkpoint = config.get("ckpt_path")
        if self.given_checkpoint is not None:
            config.ckpt_path = None

    def _add_instantiators(self) -> None:
        add = self.parser.add_instantiator

        def add_remembered(construct: Callable[..., Any], kind: type, **how: bool) -> None:
            add(remembered(construct), kind, **how)

        self.parser.add_instantiator = add_remembered
        super()._add_instantiators()
        self.parser.add_instantiator = add

    def instantiate_classes(self) -> None:
        """Build nothing yet: neither a model nor a device is needed to find what the user must change."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing yet."""

    def resolved(self) -> dict[str, Any]:
        """Return the configuration with every default, without what belongs to the launcher and the place."""
        if self._resolved is None:
            # Parsing has validated it. But objects by name would be taken for the arguments of one object without that.
            known = not _names_objects(self.config)
            dumped = self.parser.dump(_with_absolute_paths(self.config), skip_none=False, skip_validation=known)
            self._resolved = saved_config.resolve(dumped, self.given_checkpoint, str(self.subcommand))
        return self._resolved

    def prepare_datasets(self) -> None:
        """Have datasets download what their constructors need, once a node.

        Raises:
            UserError: One refused its arguments.
            StorageAway: One reads from a storage that does not answer.
        """
        with messages.constructor_problems():
            early_preparation.prepare(self.asked.get("data"))

    def build(self, plugins: list[Any], logger: Callable[[], Any]) -> None:
        """Build data, model and trainer.

        Args:
            plugins: For the trainer, beside those that the user configured.
            logger: Makes the logger of a fit for which none was configured.

        Raises:
            UserError: A constructor refused its arguments.
            StorageAway: A constructor reads from a storage that does not answer.
        """
        self._plugins, self._logger = plugins, logger
        if self.subcommand in INSPECTING:  # one process
            self.prepare_datasets()
        self.parser.add_instantiator(_with_words, object)
        with messages.constructor_problems():
            _patiently_built(super().instantiate_classes)

    def build_data(self) -> Any:
        """Build only the data, in the one process that there is; return None where there are none.

        Raises:
            UserError: A constructor refused its arguments.
        """
        self.prepare_datasets()
        with messages.constructor_problems():
            only_data = dict_to_namespace({"data": self.asked.data})
            return _patiently_built(lambda: self._parser(str(self.subcommand)).instantiate_classes(only_data)).data

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build Lightning's Trainer with this project's checkpoint IO, logger and console."""
        config = self._get(self.config_init, "trainer")
        config["callbacks"] = _as_list(config["callbacks"])
        config["plugins"] = [*_as_list(config["plugins"]), *self._plugins]
        for plugin in config["plugins"]:
            if isinstance(plugin, CheckpointIO) and plugin not in self._plugins:
                raise UserError(
                    f"trainer.plugins={type(plugin).__name__} would take the place of the run's own checkpoint files, "
                    "which are saved in the background already, on any storage: leave it out"
                )
        if not any(isinstance(plugin, ClusterEnvironment) for plugin in config["plugins"]):
            # Said outright, for Lightning takes whatever runs within a job of Slurm, LSF or MPI for one of its tasks.
            launched = "RANK" in os.environ
            config["plugins"].append(TorchElasticEnvironment() if launched else LightningEnvironment())
        if self.subcommand != "fit":
            config["enable_checkpointing"] = bool(config["callbacks"]) and config["enable_checkpointing"]
            config["logger"] = config["logger"] or False
        elif config["logger"] in (None, True) and not config["barebones"]:
            config["logger"] = self._logger()
        self._choose_progress(config)
        if isinstance(self.datamodule, DataModule):
            config["use_distributed_sampler"] = False  # it has samplers of its own, which Lightning would shuffle again
        trainer = super().instantiate_trainer(**kwargs)
        share_gradient_memory(trainer)
        adapt(trainer, self.asked.collective_timeout if self.subcommand == "fit" else None)
        return trainer

    def _choose_progress(self, config: dict[str, Any]) -> None:
        """Choose how progress is shown: on a terminal by a live view or the user's own bar, elsewhere by lines."""
        asked, callbacks = config["enable_progress_bar"], config["callbacks"]
        own = any(isinstance(callback, ProgressBar) for callback in callbacks)
        watched = console.on_terminal() and not OWN.is_json
        if asked is not False and not (watched and own):
            if watched and bottom_rows.suit(sys.stderr.fileno()) and not config["barebones"]:
                callbacks.append(LiveView(self.progress))
                own = True
            else:
                callbacks.append(Lines(self.progress))
        config["enable_progress_bar"] = own and asked is not False
        summaries = config["enable_model_summary"] is not False and not config["barebones"]
        if summaries and not watched and not any(isinstance(callback, ModelSummary) for callback in callbacks):
            callbacks.append(ModelSummary())  # Lightning's default would draw a table

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        if self.subcommand != "fit" or config["enable_checkpointing"] is False or config["barebones"]:
            callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoints)]
        return super()._instantiate_trainer(config, callbacks)

    def trainer_arguments(self) -> dict[str, Any]:
        """Return what the trainer's method for the subcommand takes: model, data and its own flags."""
        return self._prepare_subcommand_kwargs(str(self.subcommand))


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _names_objects(value: Any) -> bool:
    """Return whether a configuration has a mapping of names to objects."""
    if isinstance(value, list):
        return any(map(_names_objects, value))
    if not isinstance(value, (Namespace, dict)):
        return False
    each = list(vars(value).values() if isinstance(value, Namespace) else value.values())
    named = isinstance(value, dict) and any(isinstance(one, Namespace) and "class_path" in one for one in each)
    return named or any(map(_names_objects, each))


def _with_absolute_paths(value: Any) -> Any:
    """Return a configuration whose files are found from any folder: in a YAML they are relative to that."""
    if isinstance(value, JsonargparsePath):
        return value if value.is_url or value.is_fsspec else str(value.absolute)
    if isinstance(value, Namespace):
        copied: Namespace = value.clone()
        for key, each in vars(value).items():
            copied[key] = _with_absolute_paths(each)
        return copied
    if isinstance(value, dict):
        return {key: _with_absolute_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_absolute_paths(each) for each in value]
    return value


def _patiently_built(build: Callable[[], T]) -> T:
    """Build again while what a constructor reads is away, with the random numbers that the first try had."""
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def undo() -> None:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])

    return patiently("what data, model or trainer read", build, undo)


def _with_words(kind: type[T], /, *args: Any, **kwargs: Any) -> T:
    """Construct something; jsonargparse loses the error, and its cause, that says nothing."""
    try:
        return kind(*args, **kwargs)
    except Exception as error:
        if not str(error):
            error.args = (storage_error(error),)
        raise
