"""What the commands that measure have in common: little is said beside the figures, and unknown names are refused."""

import argparse
import logging
import signal
import sys
import warnings
from collections.abc import Collection


def say_little() -> None:
    """Keep warnings and logs out of the figures, and let SIGTERM remove what was written, as an exception does."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for name in ("lightning.pytorch", "lightning.fabric", "pipeline"):
        logging.getLogger(name).setLevel(logging.ERROR)


def require_known(parser: argparse.ArgumentParser, kind: str, asked: Collection[str], known: Collection[str]) -> None:
    """Refuse names that are none of those known: exits with 2."""
    if unknown := set(asked) - set(known):
        parser.error(f"no {kind} {', '.join(sorted(unknown))}; there are {', '.join(known)}")
