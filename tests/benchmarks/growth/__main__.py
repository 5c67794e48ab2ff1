"""Measure how cost grows, and say by which law.

python -m tests.benchmarks.growth                     every curve (`make growth`)
python -m tests.benchmarks.growth ranks samples       only these
python -m tests.benchmarks.growth --scale quick       smaller sizes, once each
python -m tests.benchmarks.growth --write-docs        writes docs/growth.json, the plots and the section of the docs
"""

import argparse
import importlib
from pathlib import Path
from typing import Any

from tests.benchmarks import report
from tests.benchmarks.command_line import require_known, say_little
from tests.benchmarks.growth import pages
from tests.benchmarks.growth.curve import CURVES, ORDER, as_text, measure
from tests.benchmarks.subject import SCALES

for module in ("world", "samples", "states", "runs"):
    importlib.import_module(f"tests.benchmarks.growth.{module}")  # it registers its curves


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth", description="Measure how cost grows.")
    parser.add_argument("curves", nargs="*", metavar="CURVE", help=", ".join(ORDER))
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--json", type=Path, default=Path("growth.json"), help="where the result goes")
    parser.add_argument(
        "--write-docs", type=Path, nargs="?", const=Path(), help="write the section into the project in this folder"
    )
    asked = parser.parse_args()
    require_known(parser, "curve", asked.curves, ORDER)
    return asked


def main() -> None:
    """Measure what was asked for."""
    say_little()
    asked = arguments()
    result: dict[str, Any] = {"schema": 1, "machine": report.machine(), "versions": report.versions(), "curves": []}
    for name in asked.curves or ORDER:
        print(f"\n{name}: {CURVES[name].title}", flush=True)
        result["curves"].append(measure(CURVES[name], asked.scale))
        whole = pages.completed(result)
        for line in whole["curves"][-1]["lines"]:
            print(f"  {line['name']}: {line['law']}", flush=True)
        asked.json.write_text(as_text(whole))
    if asked.write_docs is not None:
        pages.write_docs(result, asked.write_docs)


if __name__ == "__main__":
    main()
