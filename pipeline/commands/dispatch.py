"""Which subcommands there are, and how those run that need no model: without Lightning, and torch only when needed.

A command is a module with `add_arguments(parser)` and `run(arguments) -> exit status`; a line in COMMANDS names it.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from pipeline.commands.command_parser import CommandParser
from pipeline.errors import DONE, UserError, did_you_mean, outcome
from pipeline.process.output import print_line
from pipeline.process.patience import Patience, add_away_limit, given_away_limit, patience

TRAINING = {
    "fit": "Train a model: a new run, or the run directory named, from where it stopped.",
    "validate": "Score a checkpoint of a run on the validation set.",
    "test": "Score a checkpoint of a run on the test set, each sample exactly once.",
    "predict": "Predict with a checkpoint of a run.",
    "summary": "Show the layers of a model, what a training step takes in FLOPs and memory, and whether it fits.",
    "data": "Show what the data consist of: samples, shapes, ranges, classes, and the order of an epoch.",
}
"""The subcommands that Lightning's Trainer runs."""

COMMANDS = {
    "new": (
        "pipeline.commands.new.command",
        "Write a small project of your own (model, data, configuration, tests, Makefile, Dockerfile), which trains at "
        "once and depends on this package as it is installed.",
    ),
    "explain_resume": (
        "pipeline.commands.explain_resume",
        "Show what the next fit would resume from, what would be different, and which samples come next.",
    ),
    "verify": (
        "pipeline.commands.verify",
        "Hash every checkpoint of a run again, and judge from the ledger whether each training sample was used as "
        "often as it should have been, epoch by epoch; show where the time of all attempts went, and suggest how often "
        "to save.",
    ),
    "report": (
        "pipeline.commands.report.command",
        "Write one page on a run (what ran, curves, throughput, proofs, checkpoints, test samples), or on several runs "
        "beside each other, which needs no network to be read.",
    ),
    "export": (
        "pipeline.commands.export.command",
        "Write the model of a checkpoint, or a part of it, for other programs: safetensors, a state_dict, pt2 of "
        "torch.export or ONNX; the file is compared with the model before it is put in place.",
    ),
    "prune": (
        "pipeline.commands.prune",
        "Delete the checkpoints of a run that need not be kept, by the rules that a fit follows after each commit.",
    ),
    "runs": (
        "pipeline.commands.list_runs.command",
        "List the runs beneath a folder or bucket: how each stands, how far it has come, its best metric, goodput and "
        "size, and in which configuration keys they differ; `runs rm` deletes some.",
    ),
    "probe": (
        "pipeline.commands.probe",
        "Try everything that a run needs of its storage, before a node is paid for; show what is missing and how fast "
        "the storage is.",
    ),
    "tensorboard": (
        "pipeline.commands.tensorboard",
        "Open TensorBoard over one run, or over all the runs of a folder or a bucket, on any storage.",
    ),
    "preflight": (
        "pipeline.commands.preflight.command",
        "Check the nodes of a job: devices, memory, disk, clocks, the storage, the network between them. Alone it "
        "checks this machine; with --preflight the agent runs it on all nodes before it starts the workers.",
    ),
    "drill": (
        "pipeline.commands.drill.command",
        "Train a configuration straight, and once more under a plan of faults (signals, kills, storage outages, a "
        "damaged checkpoint); compare weights, losses and the ledger.",
    ),
}
"""The commands that need no model: the module of each, and what its help says."""


def handles(arguments: Sequence[str]) -> bool:
    """Return whether a command line is this module's: a command, help, the version, or not a subcommand at all."""
    if not arguments or arguments[0] in ("-h", "--help"):
        return True
    return arguments[0] == "--version" or (arguments[0] not in TRAINING and not arguments[0].startswith("-"))


def main(arguments: Sequence[str]) -> int:
    """Run a command line that `handles` accepts.

    Args:
        arguments: Without the program's name.

    Returns:
        The exit status, see `pipeline.errors.outcome`.

    Raises:
        Exception: A crash.
    """
    _log_to_stderr()
    try:
        if arguments and arguments[0] in COMMANDS:
            return _run(arguments[0], arguments[1:])
        _top_level(arguments)
    except (Exception, KeyboardInterrupt) as error:
        ended = outcome(error)
        if not ended.expected:
            raise
        if isinstance(error, Exception) and os.environ.get("RANK", "0") == "0":
            for problem in str(error).splitlines():
                print_line(f"error: {problem}")
        return ended.status
    return DONE


def _run(name: str, arguments: Sequence[str]) -> int:
    with patience(Patience(given_away_limit(arguments))):
        return _run_patiently(name, arguments)


def _run_patiently(name: str, arguments: Sequence[str]) -> int:
    path, text = COMMANDS[name]
    module = importlib.import_module(path)
    if not hasattr(module, "add_arguments"):  # its flags are those of fit, too
        return int(module.run(arguments))
    parser = CommandParser(name, text)
    module.add_arguments(parser)
    add_away_limit(parser)
    status: int = module.run(parser.parse(arguments))
    return status


def _top_level(arguments: Sequence[str]) -> None:
    """Print the help over all subcommands, or raise what is wrong with the name of one."""
    helps = {**TRAINING, **{name: text for name, (_, text) in COMMANDS.items()}}
    parser = argparse.ArgumentParser(prog="python -m pipeline", description="Train, evaluate and look after runs.")
    subparsers = parser.add_subparsers(title="subcommands", description="<subcommand> --help explains each")
    for name, text in helps.items():
        subparsers.add_parser(name, help=text)
    parser.add_argument("--version", action="store_true", help="Print the version of this program.")
    if arguments and arguments[0] in ("-h", "--help"):
        parser.print_help()
        return
    if arguments and arguments[0] == "--version":
        from pipeline.run.provenance import DISTRIBUTION, version  # noqa: PLC0415 - no other command starts with it

        print_line(f"{DISTRIBUTION} {version()}", sys.stdout)
        return
    found = f"{arguments[0]!r} is no subcommand{did_you_mean(arguments[0], helps)}" if arguments else "no subcommand"
    raise UserError(f"{found} (must be one of {','.join(helps)}; python -m pipeline --help explains them)")


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("pipeline")
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
