"""What runs on the submitter: typed functions that return a TorchX AppDef, the driver that runs them, two schedulers.

Imports TorchX, and of pipeline/ only what needs no torch; `compat` holds what is undocumented in TorchX.
"""

import sys
from importlib.util import find_spec
from pathlib import Path


def _problem() -> str | None:
    """Return why nothing of this package can be imported here."""
    if find_spec("torchx") is None:
        return "TorchX is not installed in this environment: pip install 'torchx-lightning-pipeline[launch]'"
    for name in ("pipeline", "k8s"):
        own, found = Path(__file__).parents[1] / name, find_spec(name)
        if found is not None and found.origin and Path(found.origin).resolve().parent != own.resolve():
            return f"{found.origin} hides the package {name!r} of this program, {own}: give yours another name"
    return None


if problem := _problem():
    if sys.argv[:1] == ["-m"]:  # python -m components.launch: no traceback
        sys.stderr.write(f"error: {problem}\n")
        sys.exit(2)
    raise ImportError(problem)
