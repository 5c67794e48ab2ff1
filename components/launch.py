"""Train, wait, evaluate, show the result.

    python -m components.launch --run_dir runs/one --nodes 2 --config pipeline/configs/digits.yaml
    python -m components.launch -s local_docker --image my/image:1 --run_dir s3://bucket/one -- --trainer.max_epochs=3

All roles of a TorchX app start together, so the order of the stages is this driver's work. A failed training is never
evaluated, and its exit status is this one's; Ctrl-C cancels the stage that runs. On Kubernetes `--detach` submits the
driver itself, which goes on without this machine (components/driver.py).
"""

import argparse
import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from torchx.runner import Runner, get_runner
from torchx.schedulers.ids import make_unique
from torchx.specs import AppDef, BindMount, parse_mounts
from torchx.specs.file_linter import get_fn_docstring
from torchx.util.types import decode_from_string, decode_optional, is_primitive, to_dict

from components.driver import IMAGE as DRIVER_IMAGE
from components.driver import driver, options_of
from components.evaluate import evaluate
from components.role import Needs, missing
from components.stages import Where, cfg_of, run, say, submit
from components.train import train
from pipeline.checkpoint.commit import newest
from pipeline.errors import DONE, INTERRUPTED, PREEMPTED, USER_MUST_CHANGE, UserError, did_you_mean
from pipeline.run.run_dir import RECEIPT, RunDir
from pipeline.run.storage_errors import storage_error

_IN_CONTAINERS = ("local_docker", "kubernetes_job", "kubernetes")


def main(arguments: Sequence[str]) -> int:
    """Run the stages.

    Returns:
        The exit status: 0 done, 2 the user must change something, 75 a stage was preempted, 130 interrupted; else that
        of the process that failed first, or 1 where nobody says it.
    """
    try:
        options, parameters = _parse(arguments)
        return _launch(options, parameters, arguments)
    except UserError as error:
        for problem in error.problems:
            say(f"error: {problem}", sys.stderr)
        return USER_MUST_CHANGE


def _launch(options: argparse.Namespace, parameters: dict[str, Any], arguments: Sequence[str]) -> int:
    app_args = parameters.pop("app_args")
    stages = [
        train(*app_args, **_for(train, parameters)),
        # The flags after -- are training's: the evaluation takes model and data from what training wrote down.
        evaluate(**_for(evaluate, {**parameters, "gpu": min(parameters["gpu"], 1)})),
    ]
    if options.scheduler.startswith("local"):
        # On this machine the stages run in the Python that runs this.
        os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", "")))
        if absent := missing(parameters["secrets"] or ()):
            raise UserError(*absent)
        if options.scheduler == "local_cwd" and not os.path.exists(parameters["config"]):
            raise UserError(f"config={parameters['config']!r} does not exist here; the stages run in {os.getcwd()}")
    if options.scheduler in _IN_CONTAINERS:
        _check_that_it_stays(parameters["run_dir"], parameters["mounts"])
    with get_runner() as runner:
        where = _where(options, runner)
        if where.cfg.get("kind") == "jobset":
            # One object, whose second role starts when the first one is complete.
            stages = [_together(*stages)]
        if options.detach:
            _detach(where, stages, parameters, arguments, options.driver_image)
            return DONE
        # TorchX's local schedulers have just set handlers of their own, whose exception nobody would catch.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        for stage in stages:
            try:
                status, how = run(stage, where, parameters["run_dir"])
            except KeyboardInterrupt:
                say(f"{stage.name}: {'cancelled' if where.cancels else 'goes on without this driver'}", sys.stderr)
                return INTERRUPTED if where.cancels else PREEMPTED
            if status != DONE:
                say(f"{stage.name}: {how}", sys.stderr)
                return status
    _show(_seen_from_here(parameters["run_dir"], parameters["mounts"]))
    return DONE


def _where(options: argparse.Namespace, runner: Runner) -> Where:
    """Where the stages run."""
    if options.scheduler not in runner.scheduler_backends():
        known = ", ".join(sorted(runner.scheduler_backends()))
        raise UserError(f"scheduler={options.scheduler!r}: allowed are {known}")
    run_options = runner.scheduler_run_opts(options.scheduler)
    try:
        given = to_dict(options.scheduler_args) if options.scheduler_args else {}
        cfg = run_options.cfg_from_str(options.scheduler_args)
    except ValueError as error:
        raise UserError(f"scheduler_args={options.scheduler_args!r}: {error}; write a=1,b=2") from error
    allowed = [name for name, _ in run_options]
    if unknown := [name for name in given if name not in allowed]:
        raise UserError(
            *(
                f"scheduler_args={name}: {options.scheduler} has no such run option{did_you_mean(name, allowed)}; "
                f"`torchx runopts {options.scheduler}` explains them"
                for name in unknown
            )
        )
    if options.workspace and "://" not in options.workspace and not os.path.isdir(options.workspace):
        raise UserError(f"workspace={options.workspace!r} is no folder here: images would be patched with nothing")
    if (options.name or options.detach) and run_options.get("app_id") is None:
        raise UserError(
            f"{'detach' if options.detach else 'name'}: {options.scheduler} gives names of its own, by which nobody "
            "else finds a run; allowed is kubernetes_job"
        )
    name = options.name or (make_unique("pipeline") if options.detach else "")
    return Where(runner, options.scheduler, cfg, options.workspace, name, options.on_signal == "cancel")


def _together(train: AppDef, evaluate: AppDef) -> AppDef:
    """Both stages as one app, for a launcher that starts the second role after the first."""
    (role,) = evaluate.roles
    needs = replace(Needs.of(role), after=train.roles[0].name)
    return AppDef(name="pipeline", roles=[*train.roles, replace(role, metadata=needs.metadata())])


def _detach(
    where: Where, stages: Sequence[AppDef], parameters: dict[str, Any], arguments: Sequence[str], image: str
) -> None:
    """Submit what runs the stages without this process, and say how to look at it."""
    if len(stages) == 1:
        apps = [submit(stages[0], where)]
    else:
        # What is wrong with a stage is said now, and not in the log of a driver.
        for stage in stages:
            where.runner.dryrun(stage, where.scheduler, cfg_of(stage, where))
        own = {name: parameters[name] for name in ("env", "secrets", "retries")}
        made = driver(arguments, where.name, image=image, **own)
        cfg = {**options_of(where.cfg), "app_id": where.name}
        apps = [where.runner.run(made, where.scheduler, cfg)]
    say(f"submitted {where.name}: torchx status {apps[0]}, torchx log {apps[0]}, torchx cancel {apps[0]}")


def _check_that_it_stays(run_dir: str, mounts: Sequence[str] | None) -> None:
    """A folder within a container goes with it, and the next stage would find nothing there."""
    above = [mount.dst_path.rstrip("/") for mount in parse_mounts(list(mounts or ())) if mount.dst_path]
    if "://" not in run_dir and not any(f"{run_dir}/".startswith(f"{folder}/") for folder in above):
        raise UserError(
            f"run_dir={run_dir!r} is a folder within each container, which goes with it: give a URL such as "
            "s3://bucket/run, or a folder below a mount (--mounts type=bind,src=/on/the/host,dst=/runs --run_dir "
            "/runs/one)"
        )


def _seen_from_here(run_dir: str, mounts: Sequence[str] | None) -> str:
    """Where a run lies on this machine that containers see below a mount of theirs."""
    for mount in parse_mounts(list(mounts or ())):
        if isinstance(mount, BindMount) and f"{run_dir}/".startswith(f"{mount.dst_path.rstrip('/')}/"):
            return mount.src_path.rstrip("/") + run_dir[len(mount.dst_path.rstrip("/")) :]
    return run_dir


def _show(run_dir: str) -> None:
    """Print what the run has come to, read from its run directory."""
    run = RunDir(run_dir)
    try:
        record, receipt = newest(run), run.read_json(RECEIPT)
    except Exception as error:  # noqa: BLE001 - the stages ended well, whatever this machine may read
        record, receipt = None, None
        say(storage_error(error), sys.stderr)
    if record is None or receipt is None:
        say(f"done; {run} cannot be read from here: look at it where the stages ran")
        return
    if record.monitor is not None:
        say(f"final {record.monitor.name}  {record.monitor.value:.6g} (step {record.step})")
    for name, value in receipt["metrics"].items():
        say(f"{name}  {value if value is None else format(value, '.6g')}")
    say(f"test samples scored  {receipt['samples_scored']} of {receipt['samples_expected']}, once each")
    say(f"run directory  {run}")


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Split the command line into the driver's own options and the parameters of the components."""
    parser = _Parser(
        prog="python -m components.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-s", "--scheduler", default="local_cwd", help="TorchX scheduler (default: local_cwd)")
    parser.add_argument("--scheduler_args", default="", help="its run options, as a=1,b=2", metavar="A=1,B=2")
    parser.add_argument("--workspace", default="", help="a folder of code that the image is patched with, such as .")
    parser.add_argument(
        "--detach", action="store_true", help="submit a driver that runs the stages, and end (kubernetes_job)"
    )
    parser.add_argument(
        "--name", default="", help="of this pipeline; a stage that it has submitted before is found (kubernetes_job)"
    )
    parser.add_argument("--driver_image", default=DRIVER_IMAGE, help=f"image of the driver (default: {DRIVER_IMAGE})")
    parser.add_argument(
        "--on_signal", default="cancel", choices=("cancel", "leave"), help="what becomes of a stage (default: cancel)"
    )
    names = _add_parameters(parser, train)
    names += _add_parameters(parser, evaluate, skip=names)
    own, app_args = list(arguments), []
    if "--" in own:
        at = own.index("--")
        own, app_args = own[:at], own[at + 1 :]
    options = parser.parse_args(own)
    return options, {"app_args": app_args, **{name: getattr(options, name) for name in names}}


def _for(component: Callable[..., AppDef], parameters: dict[str, Any]) -> dict[str, Any]:
    """Those of the parameters that a component has."""
    return {name: value for name, value in parameters.items() if name in inspect.signature(component).parameters}


def _add_parameters(
    parser: argparse.ArgumentParser, component: Callable[..., AppDef], skip: Sequence[str] = ()
) -> list[str]:
    """Make a component's typed parameters options of the driver: its signature and docstring are its command line."""
    _, descriptions = get_fn_docstring(component)
    names = []
    for name, parameter in inspect.signature(component).parameters.items():
        if name in skip or parameter.kind is parameter.VAR_POSITIONAL:
            continue
        required = parameter.default is parameter.empty
        default = "" if required or parameter.default in (None, "", False) else f" (default: {parameter.default})"
        parser.add_argument(
            f"--{name}",
            type=_decoder(name, parameter.annotation),
            required=required,
            default=None if required else parameter.default,
            help=descriptions[name] + default,
        )
        names.append(name)
    return names


def _decoder(name: str, annotation: Any) -> Callable[[str], Any]:
    kind = decode_optional(annotation)

    def decode(text: str) -> Any:
        if kind is bool:
            if text.lower() not in ("true", "false"):
                raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
            return text.lower() == "true"
        try:
            return kind(text) if is_primitive(kind) else decode_from_string(text, kind)
        except (ValueError, TypeError) as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not {getattr(kind, '__name__', kind)}") from error

    decode.__name__ = name
    return decode


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help shows what is allowed; the app's own flags go after --)")


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
