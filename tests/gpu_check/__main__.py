"""Check on one CUDA device what no CPU can show; without one, the same smaller on the CPU, so that it is known to work.

python -m tests.gpu_check                    every check, within six minutes (`make gpu-check`)
python -m tests.gpu_check snapshots save     only these
python -m tests.gpu_check --write-docs       writes the table into docs/performance.md as well

It needs this folder and the packages of pyproject.toml with a torch for CUDA, nothing else: no network, no other node.
"""

import argparse
import importlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import report
from tests.benchmarks.command_line import require_known, say_little
from tests.gpu_check.check import (
    CHECKS,
    FAILED,
    NEEDS_A_DEVICE,
    NOT_MEASURED,
    Outcome,
    OutOfTime,
    Setting,
    as_json,
    carry_out,
    print_outcome,
    write_docs,
)

for module in ("device", "saves", "resumes", "speed"):
    importlib.import_module(f"tests.gpu_check.{module}")  # it registers its checks, in the order of the table


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check", description="Check one CUDA device.")
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=", ".join(CHECKS))
    parser.add_argument("--cpu", action="store_true", help="leave a device alone, if there is one")
    parser.add_argument("--limit", type=int, default=360, help="seconds; what is left then is not measured")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where the result goes")
    parser.add_argument("--write-docs", type=Path, nargs="?", const=Path("docs/performance.md"), help="a page")
    asked = parser.parse_args()
    require_known(parser, "check", asked.checks, CHECKS)
    return asked


def run(names: list[str], setting: Setting, where: dict[str, Any], asked: argparse.Namespace) -> list[Outcome]:
    """Make the checks, one after the other, until the time is over."""
    outcomes: list[Outcome] = []
    end, late = time.monotonic() + asked.limit, f"the limit of {asked.limit} s for all checks was reached"

    def out_of_time(*_: object) -> None:
        raise OutOfTime(late)

    signal.signal(signal.SIGALRM, out_of_time)
    for one in (CHECKS[name] for name in names):
        if (left := end - time.monotonic()) > 0:
            signal.setitimer(signal.ITIMER_REAL, left)
            outcomes.append(carry_out(one, setting))
            signal.setitimer(signal.ITIMER_REAL, 0)
        else:
            outcomes.append(Outcome(one.name, one.title, NOT_MEASURED, late))
        print_outcome(outcomes[-1])
        asked.json.write_text(as_json(where, outcomes))
    return outcomes


def main() -> None:
    """Make the checks that were asked for."""
    say_little()
    asked = arguments()
    if asked.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    where = {"machine": report.machine(), "versions": report.versions()}
    card = where["machine"]["gpu"]
    print(report.about(where))
    if card is None:
        print(f"{NEEDS_A_DEVICE}: everything runs smaller, on the CPU; what needs one is not measured")
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/inductor"  # compiled again each time, and removed
        setting = Setting(card, Path(folder))
        outcomes = run(asked.checks or list(CHECKS), setting, where, asked)
    if asked.write_docs is not None:
        write_docs(report.about(where), setting, outcomes, asked.write_docs)
    if failed := [each.check for each in outcomes if each.verdict == FAILED]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
