"""The command line of the submitter's programs: the parameters of the components are its flags."""

import argparse
import inspect
import signal
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from torchx.specs import AppDef

from components.compat import file_linter, types
from components.evaluate import evaluate
from components.train import train
from pipeline.errors import UserError


def split_app_args(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command line before and after `--`."""
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    return list(arguments[:at]), list(arguments[at + 1 :])


def add_scheduler_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where stages run."""
    add, choices = parser.add_argument, ("cancel", "leave")
    add("-s", "--scheduler", default="local_cwd", help="TorchX scheduler (default: local_cwd)")
    add("--scheduler_args", default="", help="its run options, as a=1,b=2", metavar="A=1,B=2")
    add("--workspace", default="", help="a folder of code that the image is patched with, such as .")
    add("--on_signal", default="cancel", choices=choices, help="what a signal does to a stage (default: cancel)")


def add_parameters(parser: argparse.ArgumentParser) -> list[str]:
    """Make the components' parameters options of the driver: signature and docstring are the command line."""
    parameters: dict[str, inspect.Parameter] = {}
    descriptions: dict[str, str] = {}
    for component in (evaluate, train):
        parameters.update(inspect.signature(component).parameters)
        descriptions.update(file_linter.get_fn_docstring(component)[1])
    del parameters["app_args"]
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty
        default = "" if required or parameter.default in (None, "", False) else f" (default: {parameter.default})"
        parser.add_argument(
            f"--{name}",
            type=_decoder(parameter.annotation),
            required=required,
            default=None if required else parameter.default,
            help=descriptions[name] + default,
        )
    return list(parameters)


def parameters_of(component: Callable[..., AppDef], parameters: dict[str, Any]) -> dict[str, Any]:
    """Return those of the parameters that a component has."""
    return {name: value for name, value in parameters.items() if name in inspect.signature(component).parameters}


def raise_at_signals(handler: Callable[..., Any]) -> None:
    """Have signals that end this process raise what its stages are cancelled for, instead of an exception of TorchX's.

    Args:
        handler: Raises KeyboardInterrupt.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, handler)


class LaunchParser(argparse.ArgumentParser):
    """Raises a UserError for a mistake, where argparse would print its usage and exit.

    Args:
        name: The program, as in `python -m components.<name>`.
        description: Its module's docstring, shown as it is.
    """

    def __init__(self, name: str, description: str | None) -> None:
        super().__init__(
            prog=f"python -m components.{name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found."""
        raise UserError(f"{message} (see {self.prog} --help; the app's own flags go after --)")


def _decoder(annotation: Any) -> Callable[[str], Any]:
    kind = types.decode_optional(annotation)
    name = getattr(kind, "__name__", str(kind))

    def decode(text: str) -> Any:
        try:
            if kind is bool:
                return {"true": True, "false": False}[text.lower()]
            return kind(text) if types.is_primitive(kind) else types.decode_from_string(text, kind)
        except KeyError:
            raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false") from None
        except (ValueError, TypeError) as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not {name}") from error

    decode.__name__ = name
    return decode
