"""The subcommands for the upkeep of runs, of their storage and nodes: `verify`, `prune`, `probe`, `preflight`, `drill`.

None needs a model in this process.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from jsonargparse import ArgumentParser

from pipeline.checkpoint.retention import Keep, prune
from pipeline.commands.drill import Options, drill
from pipeline.commands.preflight import command
from pipeline.commands.probe import probe
from pipeline.commands.verify import verify
from pipeline.errors import CRASH, DONE, USER_MUST_CHANGE, UserError
from pipeline.run.run_dir import RunDir
from pipeline.run.storage_errors import raise_for_user


@dataclass(frozen=True)
class Subcommand:
    """One of them.

    Attributes:
        help: What it does, in a sentence.
        arguments: Adds its arguments to a parser.
        run: Does it with what was parsed, prints what was asked for, and returns the exit status.
    """

    help: str
    arguments: Callable[[ArgumentParser], None]
    run: Callable[[Any], int]


def _run_dir(parser: ArgumentParser) -> None:
    parser.add_argument("--run_dir", type=str, required=True, help="The run directory, a path or any fsspec URL.")


def _verify_arguments(parser: ArgumentParser) -> None:
    _run_dir(parser)
    parser.add_argument(
        "--mtbf",
        type=float | None,
        default=None,
        help="Hours between two failures, for the advice how often to save. Default: as seen in the run's attempts.",
    )


def _prune_arguments(parser: ArgumentParser) -> None:
    _run_dir(parser)
    parser.add_argument(
        "--keep_last", type=int, required=True, help="So many of the newest stay, the very newest always."
    )
    parser.add_argument(
        "--keep_best", type=int, default=1, help="Of the best by the monitored value so many stay, too."
    )
    parser.add_argument("--keep_every_n_steps", type=int | None, default=None, help="And one for every so many steps.")
    parser.add_argument("--dry_run", type=bool, default=False, help="Only list what would go, and its bytes.")


def _probe_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("url", type=str, help="Where runs are to lie: a path or any fsspec URL. Nothing is left there.")
    parser.add_argument("--megabytes", type=int, default=64, help="Size of the file whose transfer is timed.")


def _readable(url: str) -> RunDir:
    run = RunDir(url)
    try:
        run.steps()
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        raise_for_user(
            error,
            f"run_dir={run.label!r} cannot be read",
            "Fix the name, or this user's permissions or credentials there",
        )
    return run


def _verify(config: Any) -> int:
    if config.mtbf is not None and not 0 < config.mtbf < math.inf:
        raise UserError(f"mtbf={config.mtbf:g}: allowed are numbers of hours above 0")
    verdict = verify(_readable(config.run_dir), config.mtbf)
    print(verdict.text)  # noqa: T201 - it is what was asked for
    return DONE if verdict.holds else CRASH


def _prune(config: Any) -> int:
    keep = Keep(config.keep_last, config.keep_best, config.keep_every_n_steps)
    text, done = prune(_readable(config.run_dir), keep, config.dry_run)
    print(text)  # noqa: T201 - it is what was asked for
    return DONE if done else CRASH


def _probe(config: Any) -> int:
    text, good = probe(config.url, config.megabytes)
    print(text)  # noqa: T201 - it is what was asked for
    return DONE if good else USER_MUST_CHANGE


def _drill_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", type=str, required=True, help="YAML file of the training, as for fit.")
    parser.add_argument(
        "--run_dir", type=str, required=True, help="Where both runs and drill.json go: a new path or fsspec URL."
    )
    parser.add_argument("--faults", type=int, default=12, help="How many faults; each kind comes once if there are 9.")
    parser.add_argument("--seed", type=int, default=7, help="The same one makes the same plan.")
    parser.add_argument("--nodes", type=int, default=2, help="Nodes of the job, all on this machine.")
    parser.add_argument("--processes", type=int, default=1, help="Processes of each node.")
    parser.add_argument("--resize", type=bool, default=False, help="Also go on with one node less for a while.")
    parser.add_argument("--args", type=str, default="", help="Further flags of fit, in one string.")


def _drill(config: Any) -> int:
    known = {field.name: config[field.name] for field in fields(Options)}
    text, holds = drill(Options(**known))
    print(text)  # noqa: T201 - it is what was asked for
    return DONE if holds else CRASH


SUBCOMMANDS = {
    "verify": Subcommand(
        "Hash every checkpoint of a run again, and judge from the ledger whether each training sample was used as "
        "often as it should have been, epoch by epoch; say where the time of all attempts went, and how often to save.",
        _verify_arguments,
        _verify,
    ),
    "prune": Subcommand(
        "Delete the checkpoints of a run that need not stay, by the rules that a fit follows after each commit.",
        _prune_arguments,
        _prune,
    ),
    "probe": Subcommand(
        "Try on a storage all that a run needs of it, before a node is paid for; say what is missing and how fast it "
        "is.",
        _probe_arguments,
        _probe,
    ),
    "preflight": Subcommand(
        "Look at the nodes of a job: devices, memory, disk, clocks, the storage, the network between them. Alone it "
        "looks at this machine; the agent runs it on all nodes before the workers, where --preflight asks it to.",
        command.arguments,
        command.run,
    ),
    "drill": Subcommand(
        "Train a configuration straight, and once more under a plan of faults (signals, kills, a storage that is away, "
        "a damaged checkpoint); compare weights, losses and the ledger.",
        _drill_arguments,
        _drill,
    ),
}
