"""The command line of `python -m pipeline runs`.

python -m pipeline runs s3://bucket/sweeps --sort metric --filter state=finished --filter 'model.learning_rate>0.01'
python -m pipeline runs rm s3://bucket/sweeps/a runs/b
"""

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipeline.checkpoint.run_records import sketched, summaries
from pipeline.checkpoint.run_summary import RunSummary, differing_keys
from pipeline.commands.command_parser import CommandParser
from pipeline.commands.list_runs import fields
from pipeline.commands.list_runs.columns import columns, lines
from pipeline.commands.list_runs.remove import remove
from pipeline.commands.list_runs.selection import SORTS, Filter, ordered, selected
from pipeline.errors import DONE, UserError, did_you_mean
from pipeline.process.output import print_line
from pipeline.process.patience import add_away_limit
from pipeline.run.run_dir import SCHEMA
from pipeline.run.run_listing import RunTree

log = logging.getLogger(__name__)

_REMOVE = "rm"
_FROM_LISTING = ("size", "checkpoints", "updated")
"""What only a listing of all files knows exactly: whoever asks for it by its name waits for that."""


def run(arguments: Sequence[str]) -> int:
    """List or delete runs, and return the exit status.

    Raises:
        UserError: A flag or a URL is the user's to change.
        StorageAway: The storage does not answer.
    """
    if arguments[:1] == [_REMOVE]:
        return remove(_removal(arguments[1:]))
    given = _listing().parse(arguments)
    tree = RunTree(given.url)
    found = _found(tree, given)
    base = tree.label
    shown = ordered(selected(found, given.filter, base), given.sort)
    if given.json:
        print_line(json.dumps(_as_json(shown, base), indent=2, allow_nan=False), sys.stdout)
        return DONE
    for each in shown:
        for problem in each.problems:
            log.warning("%s: %s", fields.text(each.label), fields.text(problem))
    if not shown:
        print_line(f"no run of {len(found)} in {base} fulfils every --filter" if found else f"no runs in {base}")
        return DONE
    wanted = None if given.columns is None else _wanted(given.columns, found)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in lines(columns(shown, base, wanted), width, may_drop=wanted is None):
        print_line(line, sys.stdout)
    return DONE


def _found(tree: RunTree, given: argparse.Namespace) -> list[RunSummary]:
    """Return the runs, with no more looked for than somebody wants to see: that takes longest."""
    named = {each.strip() for each in (given.columns or "").split(",")}
    named |= {Filter.parse(each).key for each in given.filter}
    evaluations = given.json or not named <= {"", "progress", *fields.FIELDS}
    if given.json or given.sort in _FROM_LISTING or not named.isdisjoint(_FROM_LISTING):
        return summaries(tree, tree.listings(), evaluations)
    return sketched(tree, evaluations)


def _listing() -> CommandParser:
    parser = CommandParser(
        "runs",
        "List the runs beneath a folder or bucket, at any depth: how each stands, how far it has come, its best "
        "metric, goodput and size, and the configuration keys in which they differ. `runs rm <url>...` deletes runs.",
    )
    parser.add_argument(
        "url", nargs="?", default="runs", help="A path or any fsspec URL: of a folder or bucket, or of one run."
    )
    parser.add_argument("--sort", choices=SORTS, default="started", help="Default: started, the newest first.")
    names = ", ".join(fields.FIELDS)
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="Only runs for which this holds; may be repeated, and all must hold. Signs: = != < <= > >=; = takes * and "
        f"? for any text. Names: {names}; a key of the configuration, such as model.learning_rate; a metric of the "
        "evaluation. Sizes may be 1.5GB, goodput 90%%, times 2026-11-24 or 2026-11-24T12:30.",
    )
    parser.add_argument("--columns", metavar="NAME,...", help="Show these instead: names as for --filter, or progress.")
    parser.add_argument("--json", action="store_true", help="Print all that is known of each run, as JSON.")
    add_away_limit(parser)
    return parser


def _removal(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        f"runs {_REMOVE}",
        "Delete run directories with all that lies in them: checkpoints, logs, results, and files of your own. Says "
        "what would be deleted, and asks. A run that is being written to is never deleted.",
    )
    parser.add_argument("url", nargs="+", help="Run directories, each a path or any fsspec URL.")
    parser.add_argument("--yes", action="store_true", help="Do not ask.")
    add_away_limit(parser)
    return parser.parse(arguments)


def _wanted(given: str, runs: Sequence[RunSummary]) -> list[str]:
    """Return the columns that a user names.

    Raises:
        UserError: One is unknown.
    """
    names = [each.strip() for each in given.split(",") if each.strip()]
    known = [*fields.known_names(runs), "progress"]
    unknown = [each for each in names if each not in known]
    if unknown or not names:
        raise UserError(
            *(f"columns={each!r}: no run here has it{did_you_mean(each, known)}" for each in unknown),
            *(["columns='' must name one at least"] if not names else []),
        )
    return list(dict.fromkeys(names))


def _as_json(runs: Sequence[RunSummary], base: str) -> dict[str, Any]:
    """Return runs in JSON's types; times are RFC 3339, in UTC."""
    found = []
    for run in runs:
        times = {key: fields.rfc3339(getattr(run, key)) for key in ("started", "updated")}
        best = None if run.best is None else {**asdict(run.best), "step": run.best_step}
        own = {key: value for key, value in vars(run).items() if key != "best_step"}
        found.append({"name": fields.name(run, base), **own, **times, "best": best, "problems": list(run.problems)})
    differing = differing_keys(run.config for run in runs)
    return {"schema": SCHEMA, "url": base, "differing_keys": differing, "runs": found}
