"""The errors of jsonargparse and of constructors, as one line each: the name, the value found, and the reason.

jsonargparse's errors have no structure but their text, so this module parses it; tests/test_cli.py holds an example of
each form, and fails when a release changes one.
"""

import argparse
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from lightning.pytorch import callbacks, loggers
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pipeline.config import mistakes
from pipeline.config.import_hints import function_hint, import_hint
from pipeline.errors import StorageAway, UserError, chain, did_you_mean
from pipeline.run.storage_errors import describe_outage, is_away
from pipeline.training import compat

_NOISE = r"Parser key|Does not validate|Subtypes:|Errors:|Given value|Problem with given class_path|.*'NoneType'"
"""Lines that repeat what is said elsewhere: a type that may be one of several is refused once for each of them."""
_OTHER_FORM = r"Expected a (list|bool|collections\.abc\.Iterable|path but .*)"
"""What tells nothing beside other reasons: the form that was not meant."""
_REWORDED = (
    (r"<class '([\w.]+)'>", r"\1"),
    (r"Expected a typing\.Literal\[(.*?)\]", r"must be one of \1"),
    (
        r"Expected a dot import path string: (\S+)",
        r"\1 is no class that is known by its name alone; give its import path",
    ),
    (r"Unexpected import path format: (\S+)", r"\1 is no import path: write it with dots, as package.module.Class"),
    (r"Import path .*does not correspond to a subclass of (\w+)", r"it is no subclass of \1"),
)


def parse_problem(error: argparse.ArgumentError, parser: LightningArgumentParser | None, subcommand: str) -> str:
    """Return the parser's error in one line, with the nearest allowed name for a misspelt one.

    Args:
        error: As the parser raised it.
        parser: Of the subcommand, None where the error is about the subcommand itself.
        subcommand: Its name, or "".
    """
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    text = _type_problem(lines, error) if "Parser key" in str(error) else " ".join(lines)
    misspelt = re.search(r"(?:arguments: --|option '|Option ')([\w.]+)", text)
    if misspelt:
        text += did_you_mean(misspelt[1], _allowed_names(parser, text))
    if owner := re.search(r" for ([\w.]+): Option '", text):
        allowed = ", ".join(sorted(_allowed_names(parser, text))) or "nothing"
        return f"{text} ({owner[1].rpartition('.')[2]} takes {allowed})"
    command = f"python -m pipeline {subcommand} --help" if subcommand else "python -m pipeline --help"
    return f"{text} ({command} shows what is allowed)"


def _type_problem(lines: list[str], error: BaseException) -> str:
    """Return `key=value for class: reasons` for a value that does not fit its key's type."""
    text = "\n".join(lines)
    keys = re.findall(r'Parser key "([^"]+)"', text)
    reasons = [line for line in lines if line and not re.match(_NOISE, line)]
    for form, words in _REWORDED:
        reasons = [re.sub(form, words, reason) for reason in reasons]
    reasons = [line for line in reasons if not re.fullmatch(_OTHER_FORM, line)] or reasons
    # The last key's line may itself hold the reason.
    reasons += re.findall(r'Parser key "[^"]+": (?!Does not|Problem)(\S.*)', text)
    # The value that did not fit is the innermost, which comes first.
    values = [line.removeprefix("Given value: ") for line in lines if line.startswith("Given value: ")]
    value = (
        f"={values[0]!r}" if values and len(values[0]) < 100 and not re.search("NestedArg|Namespace", values[0]) else ""
    )
    classes = re.findall(r"Problem with given class_path '([^']+)'", text)
    where = f" for {classes[-1]}" if classes and classes[-1] not in value else ""
    # A value that is of another type than a class is never imported to find out.
    tried = values and (values[0].partition(".")[0] in sys.modules or "does not correspond to a subclass" in text)
    paths = [*_imported(error), *classes[-1:], *(values[:1] if tried else ())]
    if hint := next(filter(None, map(import_hint, paths)), ""):
        reasons = [hint]
    if unknown := re.search(r"(\w+) is no class that is known", ",".join(reasons)):
        reasons.append(did_you_mean(unknown[1], _names_alone()).removeprefix("; "))
    named = re.search(r"Import path ([\w.]+) does not correspond", text)
    if hint := function_hint(named[1] if named else values[0] if values else ""):
        reasons = [hint]
    reasons = [reason for reason in dict.fromkeys(reasons) if reason]
    return f"{'.'.join(keys)}{value}{where}: {', '.join(reasons) or 'not accepted'}"


def _imported(error: BaseException) -> list[str]:
    """Return the path that the parser was importing when an error came up, if it was."""
    frames = [frame for each in chain(error) for frame, _ in traceback.walk_tb(each.__traceback__)]
    return [str(each.f_locals["name"]) for each in frames if each.f_code.co_name == "import_object"][-1:]


def _names_alone() -> set[str]:
    """Return the names of classes that are known without a module: Lightning's, torch's, and those imported already."""
    named = {*callbacks.__all__, *loggers.__all__, *torch.optim.__all__, *torch.optim.lr_scheduler.__all__}
    waiting: list[type] = [pl.LightningModule, pl.LightningDataModule]
    for kind in waiting:
        waiting += kind.__subclasses__()
    return named | {kind.__name__ for kind in waiting}


def _allowed_names(parser: LightningArgumentParser | None, text: str) -> set[str]:
    """Return the names that would be allowed in the place of a misspelt one."""
    owner = re.search(r" for ([\w.]+): Option", text)
    if owner:
        module, _, name = owner[1].rpartition(".")
        return set(inspect.signature(getattr(sys.modules[module], name)).parameters) - {"args", "kwargs"}
    return set() if parser is None else compat.option_names(parser)


@contextmanager
def constructor_problems() -> Iterator[None]:
    """Report what a constructor refused.

    Raises:
        UserError: It refused its arguments, or cannot read what they name; or a package is missing.
        StorageAway: The storage that it reads does not answer.
    """
    try:
        yield
    except Exception as error:
        causes = chain(error)
        for each in reversed(causes):
            if isinstance(each, (UserError, StorageAway)):
                raise each from error
        if is_away(error):
            raise StorageAway(f"building data, model and trainer: {describe_outage(error)}") from error
        for each in causes:
            if type(each).__module__.startswith("torch"):  # out of memory, say, which the parser took for a refusal
                raise each from error
        if not isinstance(error, (ValueError, OSError, ImportError, MisconfigurationException)):
            raise
        raise UserError(mistakes.refusal(error)) from error
