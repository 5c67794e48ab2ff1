"""The app: one LightningCLI for every subcommand, with a run directory, the launcher's topology, resume and guards.

Each start decides in this order, before a model is built or a device is taken: what the user asked for (parsed and
checked, all problems at once), where the run lies (the same for all nodes, proven), and where it goes on.
"""

import argparse
import hashlib
import logging
import socket
from collections.abc import Sequence
from typing import Any

import fsspec
import lightning.pytorch as pl
import torch.distributed
import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_summary import ModelSummary

from pipeline import configuration, console, loops
from pipeline.checkpoint.callback import Checkpoints
from pipeline.checkpoint.io import StreamingIO
from pipeline.checkpoint.record import CommitRecord, newest, select
from pipeline.data import DataModule
from pipeline.errors import CRASH, DONE, USER_MUST_CHANGE, UserError
from pipeline.evaluation import Checkpoint, Evaluation, ProofFailed
from pipeline.ledger import Ledger
from pipeline.logs import RunLogger
from pipeline.run_dir import RunDir, next_run_dir, storage_error
from pipeline.topology import Topology

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Run one command line.

    Returns:
        The exit status: 0 done, 1 a proof failed, 2 the user must change something. Crashes raise.
    """
    topology = None
    try:
        topology = Topology.from_environment()
        console.set_up(topology.rank)
        PipelineCLI(list(arguments), topology)
    except UserError as error:
        console.say_problems(error, topology)
        return USER_MUST_CHANGE
    except ProofFailed as error:
        log.error("error: %s", error)
        return CRASH
    except _Finished:
        return DONE
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return DONE


class Trainer(pl.Trainer):
    """Lightning's Trainer, and the subcommand that only looks at the model."""

    def summary(self, model: pl.LightningModule, max_depth: int = -1) -> None:
        """Print the layers of a model with their parameters and, given its example_input_array, their sizes.

        Args:
            model: The model.
            max_depth: Levels of nested layers to show; -1 shows all.
        """
        if max_depth < -1:
            raise UserError(f"max_depth={max_depth}: allowed are -1 (all layers), 0 and more levels")
        if model.example_input_array is None:
            log.info("no sizes: %s sets no example_input_array", type(model).__name__)
        print(ModelSummary(model, max_depth=max_depth))  # noqa: T201 - it is what was asked for


class PipelineCLI(LightningCLI):
    """Parses, checks, decides where to go on, and runs one subcommand.

    Args:
        arguments: The command line.
        topology: Where the launcher put this process.
    """

    def __init__(self, arguments: list[str], topology: Topology) -> None:
        set_parsing_settings(config_read_mode_fsspec_enabled=True)
        self.topology = topology
        self.run_dir: RunDir | None = None
        self.start: dict[str, Any] = {}
        self.given_checkpoint: str | None = None
        super().__init__(
            args=configuration.with_run_config(arguments),
            trainer_class=Trainer,
            trainer_defaults={"devices": topology.processes, "num_nodes": topology.nodes},
            seed_everything_default=42,
            save_config_callback=None,
            parser_kwargs={
                "prog": "python -m pipeline",
                "description": __doc__,
                "exit_on_error": False,
                "allow_abbrev": False,
                **{
                    name: {"exit_on_error": False, "allow_abbrev": False, "prog": f"python -m pipeline {name}"}
                    for name in self.subcommands()
                },
            },
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's own, and `summary`."""
        return {**LightningCLI.subcommands(), "summary": {"model"}}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "summary":
            parser.add_argument(
                "--run_dir",
                type=str | None,
                default=None,
                help="The run directory: a local path or any fsspec URL (s3://bucket/run). The same one goes on where "
                "it stopped. Default for fit: the next free runs/<name>-<n>.",
            )
        # Only fit saves, but the same YAML file serves all of them.
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        if subcommand in configuration.FROM_RUN:
            parser.add_argument(
                "--checkpoint",
                type=str | None,
                default=None,
                help="Which checkpoint of the run: best, latest or a step. Default: the best where a metric was "
                "monitored, else the latest.",
            )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; turn the parser's complaints into ours."""
        try:
            self.config = parser.parse_args(args)
        except argparse.ArgumentError as error:
            raise UserError(configuration.explain(error, self._subcommand_parsers, args)) from error
        config = self.config[self.config.subcommand]
        # Lightning would merge the hyperparameters of a local checkpoint over the flags, and not those of a remote one.
        self.given_checkpoint = config.get("ckpt_path")
        if self.given_checkpoint is not None:
            config.ckpt_path = None

    def before_instantiate_classes(self) -> None:
        """Check what was asked for, and decide where the run lies and where it goes on."""
        config = self.config[self.subcommand]
        if self.subcommand == "summary":
            config.data = None
            for key, value in {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "logger": False}.items():
                config.trainer[key] = value
            return
        problems = configuration.problems(str(self.subcommand), config, self.given_checkpoint, self.topology)
        if problems:
            raise UserError(*problems)
        if config.trainer.fast_dev_run:
            if self.subcommand != "fit":
                self.start = self.topology.agree("start", self._choose_checkpoint)
            return
        if self.subcommand == "fit" or config.run_dir is not None:
            url = self.topology.agree("run_dir", lambda: config.run_dir or next_run_dir(configuration.run_name(config)))
            self.run_dir = RunDir(url)
            self._meet()
        if self.subcommand == "fit":
            self.start = self.topology.agree("start", self._choose_start)
            if self.start["finished"]:
                log.info("finished: %s is done at step %d; nothing to train", self.run_dir, self.start["step"])
                raise _Finished
        else:
            self.start = self.topology.agree("start", self._choose_checkpoint)

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; what their constructors refuse is the user's to mend."""
        self.topology.together("instantiated", self._instantiate)

    def _instantiate(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, OSError, MisconfigurationException) as error:
            raise configuration.cause(error) from error

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Lightning's Trainer with this project's checkpoints, logger and console."""
        config = self._get(self.config_init, "trainer")
        config["callbacks"] = _as_list(config["callbacks"])
        config["plugins"] = [*_as_list(config["plugins"]), StreamingIO(self.run_dir)]
        if self.subcommand != "fit":
            config["enable_checkpointing"] = bool(config["callbacks"]) and config["enable_checkpointing"]
            config["logger"] = config["logger"] or False
        elif config["logger"] in (None, True):
            config["logger"] = RunLogger(self.run_dir) if self.run_dir is not None else False
        if config["enable_progress_bar"] is None and not console.on_terminal():
            config["enable_progress_bar"] = False
            config["callbacks"].append(console.Lines())
        if isinstance(self.datamodule, DataModule):
            config["use_distributed_sampler"] = False  # it has samplers of its own, which Lightning would shuffle again
        elif self.datamodule is not None and self.subcommand == "fit":
            log.info(
                "%s is a data module of its own kind: samples are not accounted for, and a resume in the middle of an "
                "epoch repeats some and leaves others out (pipeline.data.DataModule does neither)",
                type(self.datamodule).__name__,
            )
        trainer = super().instantiate_trainer(**kwargs)
        loops.install(trainer)
        loops.exact_reduce(trainer)
        # Lightning's own handler of SIGTERM talks to the other ranks from inside the signal and hangs when they have
        # been signalled too. Without it the process ends at once, and the last durable checkpoint stands.
        trainer._signal_connector.register_signal_handlers = _leave_signals_alone  # type: ignore[method-assign]
        if self.subcommand == "fit" and self.run_dir is not None:
            trainer.callbacks.insert(0, _SaveConfig(self.run_dir, self._resolved()))  # type: ignore[attr-defined]
        ledger = (
            Ledger(self.datamodule) if isinstance(self.datamodule, DataModule) and self.subcommand == "fit" else None
        )
        if ledger is not None:
            trainer.callbacks.insert(0, ledger)  # type: ignore[attr-defined]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints) and self.run_dir is not None:
                resumed = self.start["step"] if self.start["own"] else None
                callback.attach(self.run_dir, resumed, ledger, self._facts())
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        if self.subcommand != "fit" or config["enable_checkpointing"] is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoints)]
        return super()._instantiate_trainer(config, callbacks)

    def fit(self, model: pl.LightningModule, **kwargs: Any) -> None:
        """Train, from where the run stands."""
        nodes, processes = self.topology.nodes, self.topology.processes
        log.info(
            "started on %d node%s x %d process%s: %s",
            nodes,
            "s" * (nodes > 1),
            processes,
            "es" * (processes > 1),
            self.run_dir or "fast_dev_run, nothing is written",
        )
        if self.start.get("url"):
            at = "" if self.start["step"] is None else f" at step {self.start['step']}"
            log.info("resumed%s from %s", at, self.start["url"])
        kwargs["ckpt_path"] = self.start.get("url")
        self._run_model(self.trainer.fit, model, **kwargs)
        if self.run_dir is not None:
            metrics = {
                name: float(value) for name, value in self.trainer.callback_metrics.items() if name.startswith("val")
            }
            values = "".join(f", {name} {value:.6g}" for name, value in metrics.items())
            log.info("finished: step %d, epoch %d%s", self.trainer.global_step, self.trainer.current_epoch, values)

    def validate(self, model: pl.LightningModule, **kwargs: Any) -> None:
        """Lightning's validation of one of the run's checkpoints."""
        self._run_model(self.trainer.validate, model, **{**kwargs, **self._chosen()})

    def predict(self, model: pl.LightningModule, **kwargs: Any) -> None:
        """Lightning's prediction with one of the run's checkpoints; a BasePredictionWriter keeps what it predicts."""
        self._run_model(self.trainer.predict, model, **{**kwargs, **self._chosen()})

    def test(self, model: pl.LightningModule, **kwargs: Any) -> None:
        """Score the test set exactly once, and leave a receipt that says so."""
        kwargs["verbose"] = kwargs["verbose"] and console.on_terminal()
        kwargs.update(self._chosen())
        if self.run_dir is None:  # fast_dev_run: a try, which proves nothing
            self._run_model(self.trainer.test, model, **kwargs)
            return
        url, sha256 = self.start["url"], self.start["sha256"]
        evaluation = Evaluation(self.run_dir, Checkpoint(url, sha256 or _sha256(url)))
        self.trainer.callbacks.append(evaluation)  # type: ignore[attr-defined]
        evaluation.watch(self.trainer, self.datamodule if self.datamodule is not None else model)
        log.info("evaluating %s on 1 device", url)
        self._run_model(self.trainer.test, model, **kwargs)
        evaluation.conclude(self.trainer)
        receipt = evaluation.receipt
        log.info(
            "finished: %d of %d test samples scored, once each%s",
            receipt["samples_scored"],
            receipt["samples_expected"],
            "".join(f", {name} {value}" for name, value in receipt["metrics"].items()),
        )

    def _chosen(self) -> dict[str, Any]:
        return {"ckpt_path": self.start.get("url")}

    def _run_model(self, run: Any, model: pl.LightningModule, **kwargs: Any) -> None:
        try:
            run(model, **kwargs)
        except MisconfigurationException as error:
            raise UserError(" ".join(str(error).split())) from error
        except RuntimeError as error:
            if "loading state_dict" not in str(error):
                raise
            raise UserError(
                f"the model does not fit the checkpoint {kwargs['ckpt_path']}: "
                f"{' '.join(str(error).split())}. Give the configuration that the run was started with, or another "
                "--run_dir"
            ) from error

    def _meet(self) -> None:
        """Every node proves that it sees the same run directory.

        Raises:
            UserError: It cannot be written, or some nodes look at another place.
        """
        run, topology = self.run_dir, self.topology
        assert run is not None
        host = socket.gethostname()
        nonce = topology.agree("nonce", run.write_nonce)
        blind = [
            f"node {node} ({name})"
            for node, name, sees in sorted(
                {tuple(each) for each in topology.gather("sees", [topology.node, host, run.sees(nonce)])}
            )
            if not sees
        ]
        topology.agree("nonce removed", lambda: run.remove(nonce))
        if blind:
            raise UserError(
                f"run_dir={run.label!r} is not the same place on all nodes: {', '.join(blind)} cannot see what rank 0 "
                "wrote there. Use storage that all nodes share: a network folder mounted at the same path everywhere, "
                "or s3://"
            )

    def _choose_start(self) -> dict[str, Any]:
        """On rank 0: where this fit goes on."""
        run = self.run_dir
        assert run is not None
        resolved = self._resolved()
        saved = configuration.saved_config(run, "fit")
        record = newest(run)
        start: dict[str, Any] = {"finished": False, "url": self.given_checkpoint, "step": None, "own": False}
        if record is not None:
            configuration.same_model(run, saved, resolved)
            own = run.url_of(record.name)
            if self.given_checkpoint not in (None, own, (saved or {}).get("ckpt_path")):
                raise UserError(
                    f"ckpt_path={self.given_checkpoint!r}: {run} stands at step {record.step} already, and committed "
                    "steps are never written again. To go on from another checkpoint give a new --run_dir; to go on "
                    "with this run leave --ckpt_path out"
                )
            start = {"finished": False, "url": own, "step": record.step, "own": True}
            if "end" in record.reason and saved == resolved:
                return {**start, "finished": True}
        return start

    def _choose_checkpoint(self) -> dict[str, Any]:
        """On rank 0: which checkpoint a subcommand other than fit takes."""
        config = self.config[self.subcommand]
        if self.given_checkpoint is not None:
            return {"url": self.given_checkpoint, "sha256": None, "own": False}
        if config.run_dir is None:
            return {}
        run = RunDir(config.run_dir)
        resolved = self._resolved()
        configuration.same_model(run, configuration.saved_config(run, "fit"), resolved, wholly=True)
        record: CommitRecord = select(run, config.checkpoint)
        if self.run_dir is not None:
            run.write(RunDir.config(str(self.subcommand)), configuration.dump(resolved))
        return {"url": run.url_of(record.name), "sha256": record.sha256, "own": True}

    def _facts(self) -> dict[str, Any]:
        return {"world_size": self.topology.world_size}

    def _resolved(self) -> dict[str, Any]:
        """The resolved configuration, without what belongs to the launcher and the place."""
        dumped = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[self.subcommand]
        for key in ("config", "run_dir"):
            dumped.pop(key, None)
        for key in ("devices", "num_nodes"):
            dumped["trainer"].pop(key, None)
        dumped["ckpt_path"] = self.given_checkpoint
        assert isinstance(dumped, dict)
        return dumped


def _leave_signals_alone() -> None:
    """SIGTERM keeps its default: to end the process."""


class _SaveConfig(pl.Callback):
    """Writes fit.yaml once the model stands and the checkpoint fits it: a mistake must not replace a good one."""

    def __init__(self, run: RunDir, resolved: dict[str, Any]) -> None:
        self.run = run
        self.resolved = resolved

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.run.write(RunDir.config("fit"), configuration.dump(self.resolved))


class _Finished(Exception):
    """There is nothing left to train."""


def _sha256(url: str) -> str:
    digest = hashlib.sha256()
    try:
        with fsspec.open(url, "rb") as file:
            while part := file.read(1 << 22):
                digest.update(part)
    except Exception as error:
        raise UserError(f"ckpt_path={url!r} cannot be read: {storage_error(error)}") from error
    return f"sha256:{digest.hexdigest()}"


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
