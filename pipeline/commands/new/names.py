"""What a project of a user's own may be called: the name is that of a Python package, a distribution and an image."""

import keyword
import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

_ALLOWED = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
_OURS = ("pipeline", "components", "k8s")
_FOLDERS = ("build", "configs", "dist", "runs", "tests")
"""Of the project itself, beside its package."""


def name_problem(name: str, origin: str) -> str | None:
    """Return why a project cannot have a name, None where it can.

    Args:
        name: Of its package.
        origin: The argument that it comes from: `folder` or `name`.
    """
    given = f"{origin}={name!r}" if origin == "name" else f"the folder's name {name!r}"
    if not _ALLOWED.fullmatch(name):
        better = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789") or "my_project"
        return (
            f"{given} is no name for a Python package and an image: lower-case letters, digits and single underscores, "
            f"the first one a letter; add --name {better}"
        )
    if keyword.iskeyword(name):
        return f"{given} is a keyword of Python: add --name my_{name}"
    if name in _FOLDERS:
        return f"{given} is that of another folder of the project: add --name my_{name}"
    if (taken := _taken_by(name)) is not None:
        return f"{given} is taken by {taken}, which a package of that name would hide or replace: add --name my_{name}"
    return None


def _taken_by(name: str) -> str | None:
    """Return what is imported or installed under a name here, None for nothing."""
    if name in _OURS:
        return f"this program's own package {name}"
    found = find_spec(name)
    # A folder without modules of its own hides nothing; what lies in the current folder is not seen from the new one.
    if found is not None and found.origin is not None and not _is_here(found.origin):
        return f"the module {found.origin}" if Path(found.origin).exists() else f"Python's own module {name}"
    try:
        installed = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    return f"the installed package {installed.metadata['Name']} {installed.version}"


def _is_here(origin: str) -> bool:
    return Path.cwd() in (Path(origin).parent, Path(origin).parent.parent)
