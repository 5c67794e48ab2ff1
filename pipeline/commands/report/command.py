"""`python -m pipeline report --run_dir <url> [more urls]`: writes `<run_dir>/report.html`."""

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
from pipeline.run.storage_errors import raise_for_user


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `report`."""
    parser.add_argument(
        "--run_dir",
        required=True,
        nargs="+",
        metavar="URL",
        help="The run directory, a path or any fsspec URL; several are compared, on the page of the first one.",
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
    print(write_report(arguments.run_dir, arguments.output))  # noqa: T201 - the output of the command
    return DONE


def write_report(urls: Sequence[str], output: str = "") -> str:
    """Write the page on some runs.

    Args:
        urls: Of the run directories.
        output: Where to; empty for the first run's own folder.

    Returns:
        The URL of the page.

    Raises:
        UserError: See `run`.
        StorageAway: The storage does not answer.
    """
    runs = [_existing_run(url) for url in dict.fromkeys(urls)]
    page = make_report(runs).encode("utf-8", "replace")
    target = output or runs[0].url_of(REPORT)
    fs, path = storage.open_filesystem(target, f"output={target!r}")
    try:
        storage.write(fs, os.path.abspath(path) if storage.is_local(fs) else path, page)
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        raise_for_user(error, f"{target} cannot be written", "Name another place by --output")
    return target if output else f"{runs[0].label}/{REPORT}"


def make_report(runs: Sequence[RunDir]) -> str:
    """Return the page on some runs as HTML.

    Raises:
        UserError: What the page needs is not installed here.
        StorageAway: The storage does not answer.
    """
    found = [(read_facts(run), _summary(run)) for run in runs]
    return render([run_section(facts, summary) for facts, summary in found], compared(found))


def _existing_run(url: str) -> RunDir:
    run = readable_run(url)
    if not run.attempts() and run.read(RunDir.config("fit")) is None and not run.steps()["json"]:
        raise UserError(f"run_dir={run.label!r} holds no run: train first, or name the right directory")
    return run


def _summary(run: RunDir) -> RunSummary | None:
    """Return how a run stands; None where that cannot be told."""
    try:
        return next((each for each in summarize(run.label) if each.url == run.url), None)
    except StorageAway:
        raise
    except Exception:  # noqa: BLE001 - the rest of the page says what is known
        return None
