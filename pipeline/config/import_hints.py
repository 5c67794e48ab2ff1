"""Why a class path cannot be imported, and how a user's own package is found."""

import inspect
import os
import re
import sys
import types

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


def function_hint(path: str) -> str:
    """Return what to do about a function that is named in the place of a class; empty where there is no such function.

    Args:
        path: As the user gave it, such as `mine.data.rows`.
    """
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    if not isinstance(found, types.FunctionType):
        return ""
    if "return" not in found.__annotations__:
        return (
            f"{path} is a function, which must say what it returns, such as `def {name}(...) -> "
            "torch.utils.data.Dataset:` for a dataset"
        )
    returned = inspect.formatannotation(found.__annotations__["return"])
    return (
        f"{path} is a function that returns {returned}: name one of your own that returns a single object, and says so"
    )


def _file(module: str) -> str:
    return str(getattr(sys.modules.get(module), "__file__", None) or f"a folder without {module}")
