"""The files of a new project: those of the template, with its name, the version and the source of this package."""

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pipeline
from pipeline.errors import UserError
from pipeline.run.provenance import DISTRIBUTION

TEMPLATE = Path(__file__).parent / "template"
CONSTRAINTS = Path(pipeline.__file__).parent / "constraints.txt"
_NAME, _VERSION, _SOURCE = "my_project", "0.0.0", "\nPIPELINE ?=\n"
"""What stands in the template, and is replaced in a project."""


def write_project(folder: Path, name: str, version: str, source: str) -> list[Path]:
    """Write the files of a project, all of them or none, and never over another.

    Args:
        folder: Where, with nothing in it that is in the way.
        name: Of its package.
        version: Of this package, which the project will need.
        source: What pip installs it from, empty where a package index has it.

    Returns:
        The files, relative to the folder.

    Raises:
        UserError: They cannot be written.
    """
    texts = project_texts(name, version, source)
    made: list[Path] = []
    try:
        for path, text in texts.items():
            _make_folders((folder / path).parent, made)
            with (folder / path).open("x", encoding="utf-8") as file:
                made.append(folder / path)
                file.write(text)
    except OSError as error:
        for path in reversed(made):
            path.rmdir() if path.is_dir() else path.unlink()
        where = error.filename or folder
        raise UserError(
            f"folder={str(folder)!r} cannot be written: {error.strerror} ({where}); name another one, or mend that"
        ) from error
    return list(texts)


def project_texts(name: str, version: str, source: str) -> dict[Path, str]:
    """Return the text of each file of a project, by its path in there."""
    texts = {Path("constraints.txt"): CONSTRAINTS.read_text(encoding="utf-8")}
    for path in sorted(TEMPLATE.rglob("*")):
        inside = path.relative_to(TEMPLATE)
        if path.is_dir() or re.search(r"_cache|__pycache__", str(inside)):  # of pip and ruff
            continue
        text = path.read_text(encoding="utf-8").replace(_VERSION, version)
        if source:
            text = text.replace(_SOURCE, f"\nPIPELINE ?= {_in_make(source)}\n")
        texts[Path(str(inside).replace(_NAME, name))] = text.replace(_NAME, name)
    return texts


def package_source() -> str:
    """Return what pip installed this package from, as its argument; empty where that was a package index."""
    try:
        record = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        found: dict[str, Any] = json.loads(record or "{}")
        url = str(found.get("url", ""))
        inside = f"#subdirectory={found['subdirectory']}" if "subdirectory" in found else ""
        if vcs := found.get("vcs_info"):
            return f"{vcs['vcs']}+{url}@{vcs['commit_id']}{inside}"
        return f"{url}{inside}"
    except (metadata.PackageNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return ""  # another installer's, or damaged: the user of the project says it


def _make_folders(folder: Path, made: list[Path]) -> None:
    """Make a folder and those above it that do not exist, and note each."""
    if not folder.is_dir():
        _make_folders(folder.parent, made)
        folder.mkdir()
        made.append(folder)


def _in_make(text: str) -> str:
    return "'" + text.replace("$", "$$").replace("#", r"\#").replace("'", "") + "'"
