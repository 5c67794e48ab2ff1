"""Why a class path cannot be imported: what is misspelt and was meant, what fails inside, what is not installed."""

import importlib
import inspect
import os
import pkgutil
import re
import sys
import traceback
import types
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import install_command

_OURS = ("pipeline", "components", "k8s")
EXTRAS = {
    **dict.fromkeys(("obstore", "s3fs"), "s3"),
    **dict.fromkeys(("kubernetes", "torchx"), "launch"),
    **dict.fromkeys(("jinja2", "plotly"), "report"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx"),
    "datasets": "datasets",
    "optuna": "sweep",
    "PIL": "images",
    "pyarrow": "parquet",
    "webdataset": "shards",
}
"""The extra of this package that installs a module."""


class _Followed(NamedTuple):
    """How far a path leads: what its first `depth` parts name, and what importing the next one raised, if it exists."""

    owner: Any
    depth: int
    error: BaseException | None = None


def import_hint(path: str) -> str:
    """Return what is wrong with a class path, and what to do about it; empty where it names a thing in a module.

    Args:
        path: As the user gave it, such as `mine.models.Net`.
    """
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        return ""
    owner, depth, error = _follow(parts)
    if error is not None:
        return _failure(path, ".".join(parts[: depth + 1]), error)
    if depth == len(parts):
        return _module_hint(path, owner) if isinstance(owner, types.ModuleType) else ""
    meant = nearest(path)
    if parts[0] in _OURS and depth < 2 and meant is None:
        return f"the module {parts[0]!r} is this program's own, from {_file(parts[0])}: give yours another name"
    suggestion = f"; did you mean {meant!r}?" if meant else ""
    if depth:
        known = ".".join(parts[:depth])
        return f"{known!r} is {_file(known)}, which defines no {parts[depth]}{suggestion}"
    return (
        f"{parts[0]!r} is looked for in the current folder ({os.getcwd()}), in the folders of PYTHONPATH and among the "
        "installed packages: start from the folder that holds it, add that to PYTHONPATH, or install your project "
        f"(pip install -e .){suggestion}"
    )


def nearest(path: str) -> str | None:
    """Return the class path that a misspelt one most likely stands for, None where none is close to it.

    Args:
        path: Of which one part or several may be misspelt, or the name of the module between be missing.
    """
    parts = path.split(".")
    for _ in range(2 * len(parts)):
        owner, depth, error = _follow(parts)
        if error is not None:
            return None
        if depth == len(parts):
            return ".".join(parts)
        last = depth == len(parts) - 1
        if last and (module := _module_that_defines(parts[-1], owner)):
            parts.insert(depth, module)
            continue
        # A guess at a whole package has to be a good one.
        close = get_close_matches(parts[depth], set(_names_in(owner, last)), n=1, cutoff=0.6 if depth else 0.75)
        if not close:
            return None
        parts[depth] = close[0]
    return None


def install_hint(module: str | None) -> str:
    """Return the command that installs a module which an extra of this package brings; empty for any other."""
    extra = EXTRAS.get((module or "").partition(".")[0])
    return install_command(extra) if extra else ""


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


def _follow(parts: list[str]) -> _Followed:
    """Import and look up the parts of a path, one after the other."""
    owner: Any = None
    for depth, part in enumerate(parts):
        if owner is not None and hasattr(owner, part):
            owner = getattr(owner, part)
        elif owner is not None and not isinstance(owner, types.ModuleType):
            return _Followed(owner, depth)
        else:
            name = ".".join(parts[: depth + 1])
            try:
                owner = importlib.import_module(name)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a user's module does
                absent = isinstance(error, ModuleNotFoundError) and error.name == name
                return _Followed(owner, depth, None if absent else error)
    return _Followed(owner, len(parts))


def _names_in(owner: Any, last: bool) -> Iterator[str]:
    """Yield what may follow in a path: of modules only where more follows, else all but modules."""
    paths = None if owner is None else list(getattr(owner, "__path__", []))
    if owner is None or not last:
        yield from (each.name for each in pkgutil.iter_modules(paths))
    if owner is None:
        yield from (name for name in sys.modules if "." not in name)
        return
    for name in {*dir(owner), *getattr(owner, "__all__", ())}:  # the latter are there also if loaded later
        if not name.startswith("_") and isinstance(vars(owner).get(name), types.ModuleType) != last:
            yield name


def _module_that_defines(name: str, package: Any) -> str | None:
    """Return the module of a package in whose text a class is defined, without importing any."""
    for folder in getattr(package, "__path__", []):
        for path in sorted(Path(folder).glob("*.py")):
            with suppress(OSError, UnicodeDecodeError):
                if re.search(rf"^class {name}\b", path.read_text(encoding="utf-8"), re.MULTILINE):
                    return path.stem
    return None


def _failure(path: str, module: str, error: BaseException) -> str:
    """Say which import failed inside a module that exists."""
    if isinstance(error, SyntaxError):
        return f"importing {module} fails: {error.msg} ({_shown(error.filename)}:{error.lineno})"
    passed = [at for at in traceback.extract_tb(error.__traceback__) if not at.filename.startswith("<frozen")][1:]
    place = f" ({_shown(passed[-1].filename)}:{passed[-1].lineno})" if len(passed) > 1 else ""
    if isinstance(error, ModuleNotFoundError):
        install = install_hint(error.name) or "install it where this runs, on every node"
        return f"{path} imports {error.name!r}, which is not installed here{place}: {install}"
    return f"importing {module} fails: {type(error).__name__}: {' '.join(str(error).split())}{place}"


def _module_hint(path: str, module: types.ModuleType) -> str:
    own = [name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == path]
    return f"{path} is a module: name a class in it" + (f", such as {path}.{own[0]}" if own else "")


def _file(module: str) -> str:
    return str(getattr(sys.modules.get(module), "__file__", None) or f"a folder without {module}")


def _shown(file: str | None) -> str:
    return str(file).removeprefix(f"{os.getcwd()}/")
