"""Write docs/reference/ from the code: every command, flag, YAML key and variable, from the parsers that read them.

python docs/tools/reference.py            writes the pages
python docs/tools/reference.py --check    ends with 1 if a page is not what the code says
"""

import argparse
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference"
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from lightnings_flags import OTHERS, TRAINER  # noqa: E402

from tests.support import parsers  # noqa: E402
from tests.support.parsers import Flag  # noqa: E402

MADE = "<!-- made by `make reference` -->"
SCHEDULERS = ("local_cwd", "local_docker", "slurm", "kubernetes_job")
_VARIABLE = re.compile(r"(?:PIPELINE|PET)_[A-Z0-9_]+")


def main() -> int:
    """Write the pages, or compare them."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--check", action="store_true", help="write nothing; end with 1 if a page is out of date")
    check = options.parse_args().check
    for name in [name for name in os.environ if _VARIABLE.fullmatch(name)]:
        del os.environ[name]  # which are defaults of flags
    FOLDER.mkdir(exist_ok=True)
    stale = []
    for name, text in pages().items():
        path = FOLDER / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if not check:
                path.write_text(text)
    verb = "is not what the code says: make reference" if check else "written"
    print("\n".join(f"docs/reference/{name} {verb}" for name in stale) or "docs/reference/ is what the code says")
    return 1 if stale and check else 0


def pages() -> dict[str, str]:
    """Return the text of every page, by its name."""
    made = {
        "fit.md": _fit(),
        "other_stages.md": _other_stages(),
        "commands.md": _commands(),
        "agent.md": _agent(),
        "components.md": _components(),
        "environment.md": _environment(),
    }
    titles = {name: text.partition("\n")[0].removeprefix("# ") for name, text in made.items()}
    links = "".join(f"- [{title}]({name})\n" for name, title in titles.items())
    index = (
        "# Every flag and key\n\nMade from the parsers that read the flags (`make reference`); a test compares. Flags, "
        "subcommands and YAML keys use\nunderscores. A flag `--trainer.max_epochs=3` and the YAML key `max_epochs: 3` "
        "below `trainer:` are the same thing, and flags\noverride YAML.\n\n" + links
    )
    return {name: f"{text.rstrip()}\n\n{MADE}\n" for name, text in {"index.md": index, **made}.items()}


def _fit() -> str:
    found = [_in_own_words(flag) for flag in parsers.flags(parsers.stage("fit"))]
    groups: dict[str, list[Flag]] = {"This pipeline's own": [], "Trainer": [], "Checkpoints": [], "Lightning's CLI": []}
    for flag in found:
        name = flag.names[-1].lstrip("-")
        prefix, dot, _ = name.partition(".")
        title = {"trainer": "Trainer", "checkpoints": "Checkpoints"}.get(prefix if dot else "", "This pipeline's own")
        groups["Lightning's CLI" if name in OTHERS else title].append(flag)
    text = "# fit\n\n`python -m pipeline fit`: a new run, or the run directory named, from where it stopped.\n\n"
    text += "".join(f"## {title}\n\n{_table(flags)}\n" for title, flags in groups.items())
    return text + (
        "## pipeline.data.DataModule\n\nThe keys below `data:` (or `data.init_args:`), as flags `--data.<key>`.\n\n"
        + _table(_arguments_of("pipeline.data.DataModule"))
    )


def _other_stages() -> str:
    fit = {flag.names for flag in parsers.flags(parsers.stage("fit"))}
    text = (
        "# validate, test, predict, summary, data\n\nEach takes the keys of [fit](fit.md), so that one YAML file "
        "serves all, and these of its own.\n\n"
    )
    from pipeline.commands.dispatch import TRAINING

    for name in parsers.STAGES[1:]:
        own = [_in_own_words(flag) for flag in parsers.flags(parsers.stage(name)) if flag.names not in fit]
        text += f"## {name}\n\n{TRAINING[name]}\n\n{_table(own)}\n"
    return text


def _commands() -> str:
    text = "# Commands that need no model\n\nEach is `python -m pipeline <command>`.\n\n"
    for words in parsers.commands():
        text += _section(" ".join(words), parsers.command(*words))
    return text


def _agent() -> str:
    from pipeline.agent.arguments import parser

    return (
        "# The agent\n\n`python -m pipeline.agent` runs the processes of one node: torchrun's options under torchrun's "
        "names, with dashes or\nunderscores. `PET_<NAME>` in the environment is the default of an option.\n\n"
        + _table(parsers.flags(parser()))
    )


def _components() -> str:
    from components.compat import file_linter
    from components.evaluate import evaluate
    from components.predict import predict
    from components.train import train

    text = (
        "# Components and launch\n\n`torchx run -s <scheduler> <component>` takes these parameters as flags, and the "
        "app's own flags after `--`.\n\n"
    )
    for component in (train, evaluate, predict):
        summary, described = file_linter.get_fn_docstring(component)
        text += f"## {component.__name__}\n\n{_sentence(summary)}\n\n{_table(_parameters(component, described))}\n"
    for name, parser in parsers.programs().items():
        text += _section(f"python -m {name}", parser)
        for word, each in parsers.subparsers(parser).items():
            text += _section(f"python -m {name} {word}", each, "###")
    return text + _run_options()


def _run_options() -> str:
    from torchx.runner import get_runner

    text = "## Run options of the schedulers\n\nFor `--scheduler_args a=1,b=2` of `torchx run` and of `launch`.\n\n"
    with get_runner() as runner:
        for scheduler in SCHEDULERS:
            flags = [
                Flag(
                    (name,),
                    _type_name(option.opt_type),
                    parsers.default_text(option.default),
                    " ".join(option.help.split()),
                )
                for name, option in runner.scheduler_run_opts(scheduler)
            ]
            text += f"### {scheduler}\n\n{_table(flags)}\n"
    return text


def _environment() -> str:
    rows = [
        Flag((name,), "", "", text if public else f"{text} Set by this program, not by you.")
        for name, (text, public) in sorted(variables().items())
    ]
    return (
        "# Environment\n\nBeside the ones of torchrun, of S3 clients (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, "
        "`AWS_SECRET_ACCESS_KEY`,\n`AWS_DEFAULT_REGION`, `AWS_CA_BUNDLE`) and of proxies (`HTTPS_PROXY`, `NO_PROXY`) "
        "these are read.\n\n" + _table(rows, ("Variable", "What it does"))
    )


VARIABLES = {
    "PIPELINE_CACHE_DIR": ("Where remote files are kept on each node; default: the user's cache folder.", True),
    "PIPELINE_CACHE_BYTES": ("How many bytes of them; the least recently used go first. Default: 50 GB.", True),
    "PIPELINE_LOG_FORMAT": ("`text` or `json` lines, where `--log_format` names neither.", True),
    "PIPELINE_NOTIFY": ("Whom to tell how a run has ended, where `--notify` names nobody: a secret.", True),
    "PIPELINE_REVISION": ("The revision of the code in an image, for the report; set where the image is built.", True),
    "PIPELINE_IMAGE": ("The image that a container was started from, for the report.", False),
    "PIPELINE_STARTED_RUNS": ("The agent's folder of runs that its workers have begun.", False),
    "PIPELINE_HOST_MEMORY": ("Where the agent keeps states in memory.", False),
    "PIPELINE_DRILL_STEP_LOG": ("Where a drill notes each step.", False),
    "PIPELINE_SLURM_FOLDER": ("The folder of a job of Slurm.", False),
    "PIPELINE_SLURM_START": ("Which start of a job of Slurm this is.", False),
}


def variables() -> dict[str, tuple[str, bool]]:
    """Return every variable that the product names, with what it does and whether it is for users.

    Raises:
        AssertionError: One is not described here, or described here and no longer named.
    """
    named = set()
    for folder in ("pipeline", "components", "k8s"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".sh"):
                named |= set(re.findall(r"\bPIPELINE_[A-Z_]+[A-Z]", path.read_text()))
    assert named == VARIABLES.keys(), f"describe in VARIABLES: {sorted(named ^ VARIABLES.keys())}"
    return VARIABLES


def _section(title: str, parser: argparse.ArgumentParser, level: str = "##") -> str:
    told = _sentence((parser.description or "").strip().partition("\n\n")[0])
    return f"{level} {title}\n\n{told}\n\n{_table(parsers.flags(parser))}\n"


def _arguments_of(path: str) -> list[Flag]:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(_imported(path), as_group=False, fail_untyped=False)
    return parsers.flags(parser)


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)


def _parameters(component: Callable[..., Any], described: dict[str, str]) -> Iterator[Flag]:
    for name, parameter in inspect.signature(component).parameters.items():
        rest = parameter.kind is inspect.Parameter.VAR_POSITIONAL
        default = parameter.default
        shown = "" if default is inspect.Parameter.empty else parsers.default_text(default)
        needed = " Required." if default is inspect.Parameter.empty and not rest else ""
        kind = _type_name(parameter.annotation)
        yield Flag(("-- ..." if rest else f"--{name}",), kind, shown, described[name] + needed)


def _type_name(kind: Any) -> str:
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    return re.sub(r"typing\.|Optional\[(.*)\]$", lambda found: found[1] or "", name.replace("typing.", ""))


def _in_own_words(flag: Flag) -> Flag:
    name = flag.names[-1].lstrip("-")
    if name.startswith("trainer."):
        return flag._replace(text=TRAINER[name.removeprefix("trainer.")])
    return flag._replace(text=OTHERS.get(name, flag.text))


def _table(flags: Iterable[Flag], head: tuple[str, ...] = ("Flag", "Type", "Default", "What it does")) -> str:
    lines = []
    for flag in flags:
        assert flag.text, f"{flag.names[-1]} has no description"
        cells = (", ".join(f"`{name}`" for name in flag.names), _code(flag.kind), _code(flag.default), flag.text)
        told = cells if len(head) == 4 else (cells[0], cells[3])
        lines.append("| " + " | ".join(_cell(cell) for cell in told) + " |\n")
    if not lines:
        return "None of its own.\n"
    return f"| {' | '.join(head)} |\n|{' --- |' * len(head)}\n" + "".join(lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    escaped = re.sub(r"<(?=[a-z_])(?![^`]*`[^`]*$)", "&lt;", text) if "`" not in text else text
    return escaped.replace("|", "\\|")


def _sentence(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
