"""Measure this pipeline beside what it is compared with, and say what was found.

python -m tests.benchmarks                         every subject that needs nothing else (`make bench`)
python -m tests.benchmarks --scale quick           the same within three minutes (`make bench-quick`)
python -m tests.benchmarks step loader             only these
python -m tests.benchmarks --against docs/performance.json
python -m tests.benchmarks --url s3://bucket/prefix save upload load
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import fsspec

from tests.benchmarks import report
from tests.benchmarks.command_line import require_known, say_little
from tests.benchmarks.processes import forked
from tests.benchmarks.subject import SCALES, SUBJECTS, Context, measure

MODULES = "steps parts loading ordering evaluation starting meeting saving remembering turnaround"
for module in MODULES.split():
    importlib.import_module(f"tests.benchmarks.{module}")  # it registers its subjects, in the order of the table


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure speed, side by side.")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--rounds", type=int, help="of each subject, instead of its own number")
    parser.add_argument("--url", help="the storage to measure; default: a temporary folder")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where the result goes")
    parser.add_argument("--against", type=Path, help="an earlier result: say what has moved beyond the noise")
    parser.add_argument(
        "--write-docs", type=Path, nargs="?", const=Path(), help="write the tables into the project in this folder"
    )
    asked = parser.parse_args()
    require_known(parser, "subject", asked.subjects, SUBJECTS)
    return asked


def run(name: str, asked: argparse.Namespace) -> dict[str, Any] | None:
    """Measure one subject, and print it."""
    one = SUBJECTS[name]
    rounds = asked.rounds or one.rounds[SCALES.index(asked.scale)] or (1 if asked.subjects else 0)
    if not rounds:
        return None
    before, began = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        url = f"{asked.url.rstrip('/')}/bench-{uuid.uuid4().hex[:8]}" if asked.url else f"{folder}/url"
        try:
            found = measure(one, Context(asked.scale, Path(folder), url), rounds)
        finally:
            if one.stores:  # in a fork: those of a process that has used S3 may hang
                forked(remove, url, log=Path(folder) / "removed.txt")
    result = report.as_json(found, asked.scale, (before, os.getloadavg()[0]), url)
    report.print_table(result)
    print(f"  ({time.monotonic() - began:.0f} s)", flush=True)
    return result


def remove(url: str) -> None:
    """Remove a folder, if it is there."""
    fs, path = fsspec.core.url_to_fs(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def main() -> None:
    """Measure what was asked for."""
    say_little()
    asked = arguments()
    order = asked.subjects or list(SUBJECTS)
    result = {"schema": 1, "machine": report.machine(), "versions": report.versions(), "subjects": []}
    failed = []
    for name in order:
        try:
            found = run(name, asked)
        except Exception as error:  # the others are measured all the same
            print(f"\n{name}: {type(error).__name__}: {error}", file=sys.stderr)
            failed.append(name)
            continue
        result["subjects"] += [found] if found is not None else []
        asked.json.write_text(json.dumps(result, indent=1) + "\n")
    if asked.against is not None:
        report.print_changes(result, asked.against)
    if asked.write_docs is not None:
        report.write_docs(result, asked.write_docs)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
