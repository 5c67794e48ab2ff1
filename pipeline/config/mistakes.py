"""Which exceptions only the user can fix, though Lightning, torch or the user's own code raised them.

A restart would end in the same exception, so it is one sentence and status 2. What the user's own code raises, and what
a library raises that no check of its own found, is a crash with its traceback.
"""

import dis
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import dropwhile
from types import TracebackType

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pipeline.config.import_hints import install_hint
from pipeline.errors import StorageAway, UserError, chain, in_one_line

_BUILTIN = (ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError, NotImplementedError)
"""What libraries raise for wrong use; their subclasses mean something else: out of memory, a lost peer."""
_IN_PASSING = (KeyError, TypeError, AttributeError, ValueError, IndexError, ZeroDivisionError)
"""What Python raises where a value is not what the code expects."""
_PATHS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
_LIGHTNING = ("lightning", "lightning_fabric", "pytorch_lightning")
_CHECKING = ("torch.optim", "torch.nn.parallel", "torch.autograd")
"""Beside Lightning's own, the modules whose `raise` statements check how they are used, and say what is wrong."""
_LIBRARIES = (
    *("__main__", "pipeline", "jsonargparse", "torch", "torchmetrics", "numpy", "fsspec", "tensorboard", "rich"),
    *("lightning_utilities", *_LIGHTNING),
)
_OTHER_GROUPS = (
    "configure_optimizers returns other parameters or groups than the checkpoint holds the state of: give what the run "
    "was trained with, or train on from its weights in another run: --weights <this run> --run_dir <a new one>"
)
_KNOWN = {
    "does not require grad and does not have a grad_fn": "the loss that training_step returns depends on no parameter "
    "that is trained: return it without detach() or item(), and leave some parameters unfrozen",
    "implicitly created only for scalar": "the loss that training_step returns must be one number: return its mean()",
    "parameters that were not used in producing": "some parameters have no part in the loss of training_step; if that "
    "is meant, add --trainer.strategy=ddp_find_unused_parameters_true",
    "Tried to step": "the learning rate schedule ends before training does: make it as long, "
    "self.trainer.estimated_stepping_batches, or train for fewer steps; where a resumed run was given more steps, "
    "--override_optimizer true takes the longer schedule",
    "different number of parameter groups": _OTHER_GROUPS,
    "parameter group that doesn't match the size": _OTHER_GROUPS,
}
"""What torch says in its own terms, part of it in C++, and what it means here."""


@contextmanager
def reported() -> Iterator[None]:
    """Turn an exception that only the user can fix into a UserError.

    Raises:
        UserError: With the sentence that the exception has, and where in the user's code it came from.
    """
    try:
        yield
    except Exception as error:
        problem = sentence(error)
        if problem is None:
            raise
        raise UserError(problem) from error


def sentence(error: BaseException) -> str | None:
    """Return what is wrong and where, for an exception that only the user can fix; None for any other."""
    if isinstance(error, (UserError, StorageAway)):
        return None
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    if type(error) in _BUILTIN and (known := [meaning for words, meaning in _KNOWN.items() if words in text]):
        return f"{known[0]} ({text.partition('. ')[0]})"
    if isinstance(error, MisconfigurationException) or _is_check(error):
        return text + where(error)
    if isinstance(error, ImportError):
        install = install_hint(error.name)
        advice = f": {install}" if install else ". Install it where this runs, on every node"
        advice = "" if "pip install" in text else advice
        return text.rpartition("Error: ")[2] + where(error) + advice
    if _is_wrong_call(error):
        return f"{text}: its parameters must be those that Lightning's documentation gives for it"
    if _is_setup(error):
        if isinstance(error, OSError):
            return f"{text}: name a path that exists and that this user may use"
        at = _tracebacks(error)[-1].tb_frame
        place = f"{at.f_globals['__name__']}.{at.f_code.co_name}"
        return f"Lightning cannot use what it was given: {in_one_line(error)} in {place}"
    return None


def where(error: BaseException) -> str:
    """Return the place in the user's own code that an exception passed through last, in brackets, or nothing."""
    # What lies before the first library, or this module, has called it and is not what it called.
    within = dropwhile(lambda at: _is_in(at, __name__) or not _is_in(at, *_LIBRARIES), _tracebacks(error))
    files = (at for at in within if not at.tb_frame.f_code.co_filename.startswith("<"))  # and not generated code
    own = [at for at in files if not _is_in(at, *_LIBRARIES, *sys.stdlib_module_names)]
    if not own:
        return ""
    code = own[-1].tb_frame.f_code
    return f" ({code.co_filename.removeprefix(f'{os.getcwd()}/')}:{own[-1].tb_lineno} in {code.co_name})"


def refusal(error: BaseException) -> str:
    """Return what a constructor refused, from under the parser's own words about the types that it tried."""
    causes = [each for each in chain(error) if not (at := _tracebacks(each)) or not _is_in(at[-1], "jsonargparse")]
    named = re.findall(r"Problem with given class_path '([^']+)':\s+(.*?)(?=\n *- |\nGiven value|\Z)", str(error), re.S)
    prefix = f"{named[-1][0]}: " if named else ""
    if not causes:
        return " ".join((prefix + named[-1][1] if named else str(error)).split())
    # The innermost one may be a detail of how a library found out; what was raised on purpose is a ValueError.
    cause = next((each for each in reversed(causes) if isinstance(each, ValueError)), causes[0])
    prefix = prefix or "".join(_constructed(cause)[:1])
    return prefix + (sentence(cause) or " ".join(str(cause).split()) + where(cause))


def _constructed(error: BaseException) -> list[str]:
    """Return the names of the classes, each with a colon, in whose constructors an exception was raised."""
    made = [at.tb_frame.f_locals.get("self") for at in _tracebacks(error) if at.tb_frame.f_code.co_name == "__init__"]
    return [f"{type(each).__name__}: " for each in made if each is not None]


def _is_check(error: BaseException) -> bool:
    """Return whether a library raised it by a statement of its own, and not in the course of something else."""
    passed = _tracebacks(error)
    if type(error) not in _BUILTIN or not passed or not _is_in(passed[-1], *_LIGHTNING, *_CHECKING):
        return False
    return passed[-1].tb_frame.f_code.co_code[passed[-1].tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _is_wrong_call(error: BaseException) -> bool:
    """Return whether Lightning called a hook of the user's that takes other arguments."""
    passed = _tracebacks(error)
    told = re.search(r"\(\) (takes|missing|got)", str(error)) is not None
    return type(error) is TypeError and told and bool(passed) and _is_in(passed[-1], *_LIGHTNING)


def _is_setup(error: BaseException) -> bool:
    """Return whether Lightning failed by itself before its loops began: on what it was given, each time again."""
    passed = _tracebacks(error)
    began = any(at.tb_frame.f_code.co_name == "_run_stage" for at in passed)
    if began or where(error) or not any(_is_in(at, *_LIGHTNING) for at in passed):
        return False
    return isinstance(error, _PATHS) or (type(error) in _IN_PASSING and _is_in(passed[-1], *_LIGHTNING))


def _tracebacks(error: BaseException) -> list[TracebackType]:
    """Return one entry for each frame that an exception passed through, that of the one that raised it last."""
    found, at = [], error.__traceback__
    while at is not None:
        found.append(at)
        at = at.tb_next
    return found


def _is_in(at: TracebackType, *modules: str) -> bool:
    name = str(at.tb_frame.f_globals.get("__name__"))
    return any(name == module or name.startswith(f"{module}.") for module in modules)
