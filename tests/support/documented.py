"""The commands of the documentation, and checks of one by the parser that would read it, without running it."""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support import parsers
from tests.support.commands import DIGITS, ROOT

PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md"))]
STAND_INS = {
    **dict.fromkeys(("my.yaml", "configs/train.yaml", "digits.yaml", "runs/one/fit.yaml"), DIGITS),
    "my.Dataset": "pipeline.examples.digits.Digits",
}
"""What pages name as the reader's own, and what stands for it here."""


class Documented(NamedTuple):
    """One command of a page."""

    page: str
    line: str


def documented(page: Path) -> list[Documented]:
    """The commands of a page's `sh` blocks, in their order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [re.sub(r"\s+# .*", "", line) for line in lines if line and not line.startswith("#")]
    return [Documented(page.name, each.strip()) for line in commands for each in line.split(" && ")]


def check(line: str) -> None:
    """Have the parser of a command's program read it; whatever it refuses is raised."""
    words = [_stood_in(word) for word in shlex.split(line)]
    for program, checks in CHECKS.items():
        start = program.split()
        if words[: len(start)] == start:
            checks(words[len(start) :])
            return
    raise AssertionError(f"nothing here knows how to check {line!r}: run it, or say in NOT_RUN why it is not")


def _stood_in(word: str) -> str:
    name, equals, value = word.rpartition("=")
    return f"{name}{equals}{STAND_INS.get(value, value)}"


def _check_subcommand(words: Sequence[str]) -> None:
    from pipeline.config.parser import CommandLine
    from pipeline.process.topology import Topology

    if words[0] in parsers.STAGES:
        configured = ["--config", DIGITS] if not {"--config", "-c"} & set(words) else []
        flags = _without_run_dir(words[1:]) if words[0] not in ("fit", "data", "summary") else words[1:]
        topology = Topology(rank=0, local_rank=0, world_size=1, processes=1, node=0, nodes=1)
        CommandLine([words[0], *configured, *flags], topology)
        return
    name = list(words[:2]) if tuple(words[:2]) in parsers.commands() else list(words[:1])
    if name == ["explain_resume"]:
        rest = parsers.command(*name).parse_known_args(words[1:])[1]
        _check_subcommand(["fit", *rest])
        return
    parsers.command(*name).parse_args(words[len(name) :])


def _without_run_dir(words: Sequence[str]) -> list[str]:
    """What is evaluated comes from a run, which is not here."""
    at = words.index("--run_dir")
    return [*words[:at], *words[at + 2 :]]


def _check_agent(words: Sequence[str]) -> None:
    from pipeline.agent.arguments import parser

    options = parser().parse_args(list(words))
    if options.module and options.training_script == "pipeline":
        _check_subcommand(options.training_script_args)


def _check_launch(words: Sequence[str]) -> None:
    from torchx.runner import get_runner

    from components import launch
    from components.command_line import parameters_of
    from components.evaluate import evaluate
    from components.train import train

    options, parameters = launch._parse(list(words))
    app_args = parameters.pop("app_args")
    with get_runner() as runner:
        assert options.scheduler in runner.scheduler_backends()
        cfg, problems = launch.run_options(runner, options, "scheduler_args")
        assert not problems, problems
        for stage in (
            train(*app_args, **parameters_of(train, parameters)),
            evaluate(**parameters_of(evaluate, {**parameters, "gpu": min(parameters["gpu"], 1)})),
        ):
            runner.dryrun(stage, options.scheduler, cfg)
    _check_subcommand(["fit", *app_args])


def _check_sweep(words: Sequence[str]) -> None:
    from components.command_line import split_app_args
    from components.sweep import command

    own, app_args = split_app_args(words)
    options, _ = command._parse(own)
    space = command._space(options, app_args)
    _check_subcommand(["fit", *app_args, *(f"--{key}={value}" for key, value in space.extremes())])


def _check_torchx(words: Sequence[str]) -> None:
    from torchx.cli.argparse_util import torchxconfig_run
    from torchx.cli.main import main

    at = words.index("--") if "--" in words else len(words)
    torchxconfig_run.called_args.clear()  # of the command before, which this process has read, too
    own = [word for word in words[:at] if not word.startswith("--workspace")]
    main(["run", "--dryrun", "--workspace", "", *own, *words[at:]])
    if at < len(words):
        stage = "fit" if "train" in words else "predict" if "predict" in words else "test"
        _check_subcommand([stage, *words[at + 1 :], "--run_dir", "runs/x"])


def _check_program(name: str) -> Callable[[Sequence[str]], None]:
    def read(words: Sequence[str]) -> None:
        parsers.programs()[name].parse_args(list(words))

    return read


def _check_make(words: Sequence[str]) -> None:
    from tests.support.commands import command

    ended = command("make", "-n", *words)
    assert ended.status == 0, ended.text


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "python -m pipeline.agent": _check_agent,
    "python -m pipeline": _check_subcommand,
    "python -m components.launch": _check_launch,
    "python -m components.jobs": _check_program("components.jobs"),
    "python -m components.sweep": _check_sweep,
    "torchx run": _check_torchx,
    "make": _check_make,
}
"""By how a command begins: what reads the rest of it."""
