"""The app: one LightningCLI for every subcommand, with a run directory, the launcher's topology, resume and guards.

Each start decides in this order, before a model is built or a device is taken: what the user asked for (parsed and
checked, all problems at once), where the run lies (the same for all nodes, proven), and where it goes on.
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
import torch.distributed
import yaml
from jsonargparse import dict_to_namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pipeline.checkpoint.cleanup import remove_leftovers
from pipeline.commands.explain_resume import explain
from pipeline.commands.registry import SUBCOMMANDS
from pipeline.config import compatibility as drift
from pipeline.config import configuration
from pipeline.config import resume_point as start
from pipeline.config.resume_point import Start
from pipeline.data.datamodule import DataModule
from pipeline.data.ledger import Ledger
from pipeline.errors import (
    CRASH,
    DONE,
    INTERRUPTED,
    PREEMPTED,
    USER_MUST_CHANGE,
    LeaseLost,
    NothingToDo,
    Preempted,
    ProofFailed,
    StorageAway,
    UserError,
)
from pipeline.process.preemption import Preemption
from pipeline.process.topology import Topology
from pipeline.run.attempts import AttemptLog
from pipeline.run.run_dir import RunDir, next_run_dir
from pipeline.training import console
from pipeline.training import epoch_loop as loops
from pipeline.training.checkpoint_io import RunIO
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.receipt import Checkpoint, Evaluation
from pipeline.training.resume import Resume
from pipeline.training.stop_vote import Agreement
from pipeline.training.tensorboard import RunLogger
from pipeline.training.trainer import Trainer, adapt

log = logging.getLogger(__name__)

_PARSING: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
_USERS = ("`val_check_interval`", "Early stopping conditioned on metric")
"""What Lightning raises as anything else, though only the user can mend it."""
_EXPLAIN = "Say what the next fit would go on from, what would be different, and which samples come next."


def main(arguments: Sequence[str], preemption: Preemption | None = None) -> int:
    """Run one command line.

    Args:
        arguments: Without the program's name.
        preemption: Listens to signals; None: nobody does.

    Returns:
        The exit status: 0 done, 1 a proof failed or the lease is lost, 2 the user must change something, 75 preempted,
        130 interrupted by a person. Crashes raise.
    """
    topology = None
    try:
        topology = Topology.from_environment()
        console.set_up(topology.rank)
        with AttemptLog() as writer:
            PipelineCLI(list(arguments), topology, writer, preemption or Preemption())
    except UserError as error:
        console.say_problems(error, topology)
        return USER_MUST_CHANGE
    except (LeaseLost, ProofFailed, StorageAway) as error:
        log.error("error: %s", error)
        return CRASH
    except Preempted as ended:
        log.info("%s; the same command goes on from there", ended)
        return PREEMPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except NothingToDo as ended:
        return ended.status
    # Not after a crash: the other ranks may be gone, and the process is about to end.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return DONE


class PipelineCLI(LightningCLI):
    """Parses, checks, decides where to go on, and runs one subcommand.

    Args:
        arguments: The command line.
        topology: Where the launcher put this process.
        writer: Becomes the run's one writer in a fit.
        preemption: Whether this process is asked to end.
    """

    def __init__(self, arguments: list[str], topology: Topology, writer: AttemptLog, preemption: Preemption) -> None:
        set_parsing_settings(config_read_mode_fsspec_enabled=True)
        self.topology = topology
        self.writer = writer
        self.preemption = preemption
        self.run_dir: RunDir | None = None
        self.start = Start()
        self.given_checkpoint: str | None = None
        super().__init__(
            args=configuration.with_run_config(arguments),
            trainer_class=Trainer,
            trainer_defaults={"devices": topology.processes, "num_nodes": topology.nodes},
            seed_everything_default=42,
            save_config_callback=None,
            parser_kwargs={
                **_PARSING,
                "prog": "python -m pipeline",
                "description": __doc__,
                **{name: {**_PARSING, "prog": f"python -m pipeline {name}"} for name in self.subcommands()},
            },
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's own, and `summary`."""
        return {**LightningCLI.subcommands(), "summary": {"model"}}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Lightning's, which its Trainer carries out, and those that only look at a run."""
        super()._add_subcommands(parser, **kwargs)
        parsers = {"explain_resume": (self._explain_parser(), _EXPLAIN)}
        for name, each in SUBCOMMANDS.items():
            own = LightningArgumentParser(**_PARSING, prog=f"python -m pipeline {name}", description=each.help)
            each.arguments(own)
            parsers[name] = own, each.help
        for name, (added, text) in parsers.items():
            self._subcommand_parsers[name] = added
            subcommands: Any = parser._subcommands_action
            subcommands.add_subcommand(name, added, help=text)

    def _explain_parser(self) -> LightningArgumentParser:
        explaining = self._prepare_subcommand_parser(
            Trainer, "fit", **_PARSING, prog="python -m pipeline explain_resume", description=_EXPLAIN
        )
        explaining.add_argument(
            "--world_size", type=int | None, default=None, help="Processes that would train. Default: as the run had."
        )
        return explaining

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        configuration.add_flags(parser, subcommand)
        # Only fit saves, but the same YAML file serves all of them.
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        return parser

    def _set_seed(self) -> None:
        if self.subcommand not in SUBCOMMANDS:
            super()._set_seed()

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
        if self.subcommand in SUBCOMMANDS:
            raise NothingToDo(SUBCOMMANDS[self.subcommand].run(config))
        if self.subcommand == "summary":
            config.data = None
            for key, value in {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "logger": False}.items():
                config.trainer[key] = value
            return
        problems = configuration.problems(str(self.subcommand), config, self.given_checkpoint, self.topology)
        if problems:
            raise UserError(*problems)
        self.preemption.check()
        if self.subcommand == "fit":
            self.preemption.grace = config.grace
        if self.subcommand == "explain_resume":
            self._explain()
        if not config.trainer.fast_dev_run and (self.subcommand == "fit" or config.run_dir is not None):
            url = self.topology.agree("run_dir", lambda: config.run_dir or next_run_dir(configuration.run_name(config)))
            self.run_dir = RunDir(url)
            start.meet(self.run_dir, self.topology)
            if self.subcommand == "fit":
                self.writer.take(self.run_dir, self.topology)
        if self.subcommand != "fit" or self.run_dir is not None:
            self.start = Start(**self.topology.agree("start", lambda: asdict(self._choose())))
        if self.start.finished:
            log.info("finished: %s is done at step %d; nothing to train", self.run_dir, self.start.step)
            raise NothingToDo

    def _choose(self) -> Start:
        """On rank 0: where the subcommand goes on; in a fit, what killed saves left is swept once that is known."""
        config, resolved = self.config[self.subcommand], self._resolved()
        if self.subcommand == "fit":
            assert self.run_dir is not None
            chosen = start.of_training(self.run_dir, resolved, self.given_checkpoint)
            remove_leftovers(self.run_dir, spare=chosen.url)
            return chosen
        if self.given_checkpoint is not None or config.run_dir is None:
            return Start(url=self.given_checkpoint)
        chosen = start.of_evaluation(RunDir(config.run_dir), resolved, config.checkpoint)
        if self.run_dir is not None:
            self.run_dir.write(RunDir.config(str(self.subcommand)), configuration.dump(resolved))
        return chosen

    def _explain(self) -> None:
        """Say what a fit would do; only the data are built."""
        config = self.config[self.subcommand]
        run, resolved = RunDir(config.run_dir), self._resolved()
        begin = start.of_training(run, resolved, self.given_checkpoint, compare=run.is_local)
        changed = configuration.changes(configuration.saved_config(run, "fit"), resolved)
        only_data = dict_to_namespace({"data": config.data})
        data = self._build(lambda: self._parser(self.subcommand).instantiate_classes(only_data).data)
        known = config.seed_everything, config.trainer.accumulate_grad_batches
        print(explain(run, begin, changed, data, *known, config.world_size))  # noqa: T201 - was asked for
        raise NothingToDo

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; what their constructors refuse is the user's to mend."""
        self.preemption.check()
        self.topology.together("instantiated", lambda: self._build(super(PipelineCLI, self).instantiate_classes))
        self.preemption.check()
        if self.subcommand == "fit":
            self._prepare_training()

    def _build(self, build: Callable[[], Any]) -> Any:
        try:
            return build()
        except (ValueError, OSError, MisconfigurationException) as error:
            raise configuration.cause(error) from error

    def _prepare_training(self) -> None:
        """Compare with what the run goes on from, and have the samples counted and the checkpoints saved."""
        config = self.config[self.subcommand]
        facts: dict[str, Any] = {}
        known = self.topology.world_size, config.seed_everything, config.trainer.accumulate_grad_batches
        self.topology.together("facts", lambda: facts.update(drift.facts(*known, self.datamodule)))
        start.same_data(facts, self.topology)
        anew = self.topology.agree("drift", lambda: drift.compare(self.start.url, facts, config.allow_mismatch))
        ledger = Ledger(self.datamodule) if isinstance(self.datamodule, DataModule) else None
        loops.install(self.trainer)
        resume = Resume(ledger, anew, Agreement(self.preemption), self.writer.goodput)
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, Checkpoints) and self.run_dir is not None:
                resumed = self.start.step if self.start.own else None
                callback.attach(self.run_dir, resumed, facts, resume, self.writer.held, self.writer.goodput)
                resume.save = callback.save_due
                if self.topology.rank == 0 and (saver := callback.saver) is not None:
                    self.preemption.durable, self.preemption.saving = lambda: saver.durable, lambda: saver.saving
        callbacks.insert(0, resume)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Lightning's Trainer with this project's checkpoints, logger and console."""
        config = self._get(self.config_init, "trainer")
        config["callbacks"] = _as_list(config["callbacks"])
        config["plugins"] = [*_as_list(config["plugins"]), RunIO(self.run_dir)]
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
        adapt(trainer, self.config[self.subcommand].collective_timeout if self.subcommand == "fit" else None)
        if self.subcommand == "fit" and self.run_dir is not None:
            trainer.callbacks.insert(0, configuration.Save(self.run_dir, self._resolved()))  # type: ignore[attr-defined]
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        if self.subcommand != "fit" or config["enable_checkpointing"] is False or config["barebones"]:
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
        if self.start.url:
            at = "" if self.start.step is None else f" at step {self.start.step}"
            log.info("resumed%s from %s", at, self.start.url)
        kwargs["ckpt_path"] = self.start.url
        self.preemption.trains()
        self.writer.begin(self.start.step if self.start.url else 0)
        self._run_model(self.trainer.fit, model, **kwargs)
        if self.run_dir is not None:
            known = self.trainer.callback_metrics.items()
            values = "".join(f", {name} {float(value):.6g}" for name, value in known if name.startswith("val"))
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
        url = str(self.start.url)
        evaluation = Evaluation(self.run_dir, Checkpoint(url, self.start.sha256 or start.sha256(url)))
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
        return {"ckpt_path": self.start.url}

    def _run_model(self, run: Any, model: pl.LightningModule, **kwargs: Any) -> None:
        try:
            run(model, **kwargs)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning has made its own of a person's Ctrl-C
                raise error.__context__ from None
            raise
        except MisconfigurationException as error:
            raise UserError(" ".join(str(error).split())) from error
        except (ValueError, RuntimeError) as error:
            if any(words in str(error) for words in _USERS):
                raise UserError(" ".join(str(error).split())) from error
            if "loading state_dict" not in str(error):
                raise
            raise UserError(
                f"the model does not fit the checkpoint {kwargs['ckpt_path']}: "
                f"{' '.join(str(error).split())}. Give the configuration that the run was started with, or another "
                "--run_dir"
            ) from error

    def _resolved(self) -> dict[str, Any]:
        """The resolved configuration, without what belongs to the launcher and the place."""
        parsed = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[self.subcommand]
        return configuration.resolved(parsed, self.given_checkpoint)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
