"""`python -m pipeline new <folder>`: write a small project that depends on the installed package, not on a clone."""

import argparse
import logging
import os
from pathlib import Path

from pipeline.commands.new.names import name_problem
from pipeline.commands.new.project import package_source, write_project
from pipeline.errors import DONE, UserError
from pipeline.run.provenance import DISTRIBUTION, version

log = logging.getLogger(__name__)

_NOT_IN_THE_WAY = (".git", ".venv")
_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("folder", help="Where the project is written: a folder that is empty, or does not exist yet.")
    parser.add_argument("--name", help="Of its Python package. Default: the folder's own.")


def run(arguments: argparse.Namespace) -> int:
    """Write the project, and say what comes next.

    Raises:
        UserError: The folder or the name cannot be used. Nothing has been written then.
    """
    if "://" in arguments.folder:
        raise UserError(f"folder={arguments.folder!r} is a URL: a project is a local folder; its runs may lie there")
    folder = Path(os.path.abspath(arguments.folder))
    name = folder.name if arguments.name is None else arguments.name
    origin = "folder" if arguments.name is None else "name"
    problems = [each for each in (_folder_problem(folder), name_problem(name, origin)) if each]
    if version() == "unknown":
        problems.append(
            f"this program is imported from {Path(__file__).parents[2]} without being installed, and a project could "
            f"not depend on it: pip install {Path(__file__).parents[3]}"
        )
    if problems:
        raise UserError(*problems)
    written = write_project(folder, name, version(), package_source())
    shown = os.path.relpath(folder)
    log.info(
        "wrote %d files to %s: the package %s (model.py, data.py), configs/train.yaml, tests/, Makefile, Dockerfile, "
        "README.md and more, for %s %s",
        *(len(written), folder, name, DISTRIBUTION, version()),
    )
    log.info("next:")
    log.info("  %smake setup test", "" if shown == "." else f"cd {shown} && ")
    log.info("  make pipeline")
    return DONE


def _folder_problem(folder: Path) -> str | None:
    """Return why nothing can be written to a folder, None where something can."""
    try:
        found = sorted(each.name for each in folder.iterdir()) if folder.exists() or folder.is_symlink() else []
    except OSError as error:
        return f"folder={str(folder)!r} cannot be used: {error.strerror}; name one that is empty, or does not exist yet"
    in_the_way = [name for name in found if name not in _NOT_IN_THE_WAY]
    if not in_the_way:
        return None
    more = f" and {len(in_the_way) - _SHOWN} more" if len(in_the_way) > _SHOWN else ""
    return (
        f"folder={str(folder)!r} is not empty: {', '.join(in_the_way[:_SHOWN])}{more} would be in the way, and nothing "
        "is overwritten; name a folder that is empty, or does not exist yet"
    )
