"""The real parsers of all commands, caught at the moment when they would parse."""

import argparse
import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any, NamedTuple

STAGES = ("fit", "validate", "test", "predict", "summary", "data")
PROGRAMS = ("components.launch", "components.jobs", "components.sweep")
"""Programs of the submitter with a parser of their own; one that is not there is left out."""


class Caught(BaseException):
    """Carries a parser out of the program that made it."""


class Flag(NamedTuple):
    """One flag, key or positional argument.

    Attributes:
        names: As they are typed; the last one is the long one.
        kind: Its type or choices; empty for a flag without a value.
        default: As text; empty where there is none.
        text: What it does.
    """

    names: tuple[str, ...]
    kind: str
    default: str
    text: str


@contextmanager
def catching() -> Iterator[None]:
    """Have every argparse parser raise itself instead of parsing."""

    def raise_it(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise Caught(parser)

    stock = argparse.ArgumentParser.parse_known_args
    argparse.ArgumentParser.parse_known_args = raise_it  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_known_args = stock  # type: ignore[method-assign]


def caught(program: Callable[[], object]) -> argparse.ArgumentParser:
    """Return the parser with which a program parses its arguments first."""
    try:
        with catching(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            program()
    except Caught as error:
        parser: argparse.ArgumentParser = error.args[0]
        return parser
    raise AssertionError("the program parsed nothing")


def stage(name: str) -> argparse.ArgumentParser:
    """Return the parser of one of the subcommands that Lightning's Trainer runs."""
    from pipeline.config.parser import CommandLine
    from pipeline.process.topology import Topology

    class Parsers(CommandLine):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise Caught(self._subcommand_parsers[name])

    try:
        Parsers([name, "--help"], Topology(rank=0, local_rank=0, world_size=1, processes=1, node=0, nodes=1))
    except Caught as error:
        parser: argparse.ArgumentParser = error.args[0]
        return parser
    raise AssertionError(name)


def command(*words: str) -> argparse.ArgumentParser:
    """Return the parser of a subcommand that needs no model, such as `runs rm`."""
    from pipeline.commands import dispatch

    return caught(lambda: dispatch._run_patiently(words[0], list(words[1:])))


def commands() -> list[tuple[str, ...]]:
    """Return the words of every subcommand that needs no model."""
    from pipeline.commands.dispatch import COMMANDS

    return [words for name in COMMANDS for words in ([(name,), (name, "rm")] if name == "runs" else [(name,)])]


def programs() -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the submitter's programs."""
    found = {name: importlib.util.find_spec(name) for name in PROGRAMS}
    return {name: caught(_main_of(name)) for name, spec in found.items() if spec is not None}


def _main_of(name: str) -> Callable[[], object]:
    for module in (name, f"{name}.__main__"):
        if hasattr(made := importlib.import_module(module), "main"):
            return lambda: made.main([])
    raise AssertionError(f"{name} has no main")


def flags(parser: argparse.ArgumentParser) -> list[Flag]:
    """Return what a parser takes, in its order, without help and what is hidden."""
    return [_flag(action) for action in parser._actions if _is_told(action)]


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a parser's own subcommands."""
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: each for action in found for name, each in action.choices.items()}


def default_text(default: object) -> str:
    """Return a default as YAML has it; empty where there is none to speak of."""
    if default is None or default in ("", [], {}, argparse.SUPPRESS):
        return ""
    return str(default).lower() if isinstance(default, bool) else str(default)


def readable(kind: str) -> str:
    """Return a type's text without its brackets: `Optional[int]` is `int or null`."""
    if found := re.fullmatch(r"(Optional|Union|Literal)\[(.*)\]", kind):
        inner = re.split(r", (?![^\[]*\])", found[2])
        if found[1] == "Literal":
            return ", ".join(each.strip("'") for each in inner)
        return " or ".join(readable(each) for each in [*inner, *(["null"] if found[1] == "Optional" else [])])
    return " or ".join(readable(each) for each in kind.split(" | ")) if " | " in kind else kind


def _is_told(action: argparse.Action) -> bool:
    hidden = action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    return not hidden and not action.dest.endswith(".help") and type(action).__name__ != "_ActionConfigLoad"


def _flag(action: argparse.Action) -> Flag:
    from jsonargparse._typehints import type_to_str

    hint = getattr(action, "_typehint", None)
    if hint is not None:
        kind = readable(type_to_str(hint))
    elif action.choices is not None:
        kind = ", ".join(map(str, action.choices))
    elif action.nargs == 0:
        kind = ""
    else:
        kind = getattr(action.type, "__name__", "str").strip("_")
    names = tuple(name for name in action.option_strings if not name.endswith("+")) or (
        str(action.metavar or action.dest),
    )
    shown = "" if action.nargs == 0 else default_text(action.default)
    text = " ".join((action.help or "").replace("%%", "%").split())
    for said in (f" (default: {shown})", f" Default: {shown}.", f" Default: {shown.removesuffix('.0')}."):
        text = text.removesuffix(said)
    needed = " Required." if action.required and action.option_strings else ""
    return Flag(names, kind, shown, f"{text}{needed}")
