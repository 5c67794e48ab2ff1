"""`python -m pipeline report --run_dir <url> [more urls]`: writes `<run_dir>/report.html`.

`python -m pipeline report <folder>` compares the runs beneath a folder, such as those of a sweep.
"""

import argparse
import os
from collections.abc import Sequence

from pipeline.checkpoint.run_records import summarize
from pipeline.checkpoint.run_summary import RunSummary
from pipeline.commands.command_parser import readable_run
from pipeline.commands.report.comparison import compared
from pipeline.commands.report.page import render
from pipeline.commands.report.run_facts import read_facts
from pipeline.commands.report.sections import run_section
from pipeline.errors import DONE, StorageAway, UserError
from pipeline.run import storage
from pipeline.run.run_dir import REPORT, RunDir
from pipeline.run.run_listing import RunTree
from pipeline.run.storage_errors import raise_for_user


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `report`."""
    parser.add_argument("url", nargs="*", default=[], help="The same as --run_dir.")
    parser.add_argument(
        "--run_dir",
        nargs="+",
        default=[],
        metavar="URL",
        help="The run directory, a path or any fsspec URL, or a folder of runs, such as a sweep's; several runs are "
        "compared, on the page of the first URL.",
    )
    parser.add_argument(
        "--output",
        default="",
        help=f"Where the page is written, a path or any fsspec URL. Default: {REPORT} of the run.",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the page, print where it is, and return the exit status.

    Raises:
        UserError: A run cannot be read, the page cannot be written, or what it needs is not installed.
        StorageAway: The storage does not answer.
    """
    urls = [*arguments.url, *arguments.run_dir]
    if not urls:
        raise UserError("report: the following arguments are required: --run_dir, of a run or a folder of runs")
    print(write_report(urls, arguments.output))  # noqa: T201 - the output of the command
    return DONE


def write_report(urls: Sequence[str], output: str = "") -> str:
    """Write the page on some runs.

    Args:
        urls: Of run directories, or of folders with runs in them.
        output: Where to; empty for the folder of the first URL.

    Returns:
        The URL of the page.

    Raises:
        UserError: See `run`.
        StorageAway: The storage does not answer.
    """
    runs = {run.url: run for url in urls for run in _existing_runs(url)}
    page = make_report(list(runs.values())).encode("utf-8", "replace")
    first = RunDir(urls[0])
    target = output or first.url_of(REPORT)
    fs, path = storage.open_filesystem(target, f"output={target!r}")
    try:
        storage.write(fs, os.path.abspath(path) if storage.is_local(fs) else path, page)
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        raise_for_user(error, f"{target} cannot be written", "Name another place by --output")
    return target if output else f"{first.label}/{REPORT}"


def make_report(runs: Sequence[RunDir]) -> str:
    """Return the page on some runs as HTML.

    Raises:
        UserError: What the page needs is not installed here.
        StorageAway: The storage does not answer.
    """
    found = [(read_facts(run), _summary(run)) for run in runs]
    return render([run_section(facts, summary) for facts, summary in found], compared(found))


def _existing_runs(url: str) -> list[RunDir]:
    """Return a run, or those beneath a folder in the order of their names."""
    run = readable_run(url)
    if run.attempts() or run.read(RunDir.config("fit")) is not None or run.steps()["json"]:
        return [run]
    try:
        found = [RunDir(listing.label) for listing in RunTree(run.label).listings()]
    except UserError:  # there is nothing
        found = []
    if not found:
        raise UserError(f"run_dir={run.label!r} holds no run: train first, or name the right directory")
    return found


def _summary(run: RunDir) -> RunSummary | None:
    """Return how a run stands; None where that cannot be told."""
    try:
        return next((each for each in summarize(run.label) if each.url == run.url), None)
    except StorageAway:
        raise
    except Exception:  # noqa: BLE001 - the rest of the page says what is known
        return None
