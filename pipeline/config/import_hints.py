"""Why a class path cannot be imported, and how a user's own package is found."""

import os
import re
import sys

_OURS = ("pipeline", "components", "k8s")


def import_hint(class_path: str, text: str) -> str:
    """Return what to do about a class path that is not found; empty where it is found.

    Args:
        class_path: As the user gave it, such as `mine.models.Net`.
        text: What importing it raised.
    """
    top = class_path.partition(".")[0]
    missing = re.search(r"No module named '([\w.]+)'", text)
    lacking = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text)
    if (missing or lacking) and top in _OURS:
        return f"the module {top!r} is this program's own, from {_file(top)}: give yours another name"
    if missing and class_path.startswith(f"{missing[1]}."):
        return (
            f"{top!r} is looked for in the current folder ({os.getcwd()}), in the folders of PYTHONPATH and among the "
            "installed packages: start from the folder that holds it, add that to PYTHONPATH, or install your project "
            "(pip install -e .)"
        )
    if missing:
        return f"{class_path} imports {missing[1]!r}, which is not installed here"
    if lacking:
        return f"{lacking[1]!r} is {_file(lacking[1])}, which defines no {lacking[2]}"
    return ""


def _file(module: str) -> str:
    return str(getattr(sys.modules.get(module), "__file__", None) or f"a folder without {module}")
