"""Train, wait, evaluate, show the result.

    python -m components.launch --run_dir runs/one --nodes 2 --config pipeline/configs/digits.yaml
    python -m components.launch -s local_docker --image my/image:1 --run_dir s3://bucket/one -- --trainer.max_epochs=3

All roles of a TorchX app start together, so the order of the stages is this driver's work. A failed training is never
evaluated, and its exit status is this one's; Ctrl-C cancels the stage that runs.
"""

import argparse
import inspect
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from torchx.runner import Runner, get_runner
from torchx.specs import NONE, AppDef, AppState, AppStatus, BindMount, is_terminal, parse_mounts
from torchx.specs.file_linter import get_fn_docstring
from torchx.util.types import decode_from_string, decode_optional, is_primitive

from components.evaluate import evaluate
from components.role import missing
from components.train import train
from pipeline.checkpoint.record import newest
from pipeline.errors import CRASH, DONE, INTERRUPTED, PREEMPTED, USER_MUST_CHANGE, UserError
from pipeline.failures import parse
from pipeline.run_dir import RECEIPT, RunDir, storage_error

_POLL_SECONDS = 0.5
_CLOCKS = timedelta(minutes=1)


def main(arguments: Sequence[str]) -> int:
    """Run the stages.

    Returns:
        The exit status: 0 done, 2 the user must change something, 75 a stage was preempted, 130 interrupted; else that
        of the process that failed first, or 1 where nobody says it.
    """
    try:
        options, parameters = _parse(arguments)
        return _launch(options, parameters)
    except UserError as error:
        for problem in error.problems:
            _say(f"error: {problem}", sys.stderr)
        return USER_MUST_CHANGE


def _launch(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    app_args = parameters.pop("app_args")
    stages = [
        train(*app_args, **_for(train, parameters)),
        # The flags after -- are training's: the evaluation takes model and data from what training wrote down.
        evaluate(**_for(evaluate, {**parameters, "gpu": min(parameters["gpu"], 1)})),
    ]
    local = options.scheduler.startswith("local")
    if local:
        # On this machine the stages run in the Python that runs this.
        os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", "")))
        if absent := missing(parameters["secrets"] or ()):
            raise UserError(*absent)
        if options.scheduler == "local_cwd" and not os.path.exists(parameters["config"]):
            raise UserError(f"config={parameters['config']!r} does not exist here; the stages run in {os.getcwd()}")
    with get_runner() as runner:
        if options.scheduler not in runner.scheduler_backends():
            known = ", ".join(sorted(runner.scheduler_backends()))
            raise UserError(f"scheduler={options.scheduler!r}: allowed are {known}")
        cfg = runner.scheduler_run_opts(options.scheduler).cfg_from_str(options.scheduler_args)
        # TorchX's local schedulers have just set handlers of their own, whose exception nobody would catch.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        for stage in stages:
            launched = datetime.now(UTC)
            try:
                ended = _run(runner, stage, options.scheduler, cfg, options.workspace)
            except KeyboardInterrupt:
                _say(f"{stage.name}: cancelled", sys.stderr)
                return INTERRUPTED
            if ended.state != AppState.SUCCEEDED:
                status = _said_by(ended) or _written_by(stage.name, parameters["run_dir"], launched) or CRASH
                why = "" if ended.msg in ("", NONE) else f" ({ended.msg})"
                how = f"{ended.state.name.lower()} with status {status}{why}; its log is above"
                if status == PREEMPTED:
                    how = "preempted; the same command goes on from its newest checkpoint"
                _say(f"{stage.name}: {how}", sys.stderr)
                return status
    _show(_seen_from_here(parameters["run_dir"], parameters["mounts"]))
    return DONE


def _run(runner: Runner, app: AppDef, scheduler: str, cfg: dict[str, Any], workspace: str) -> AppStatus:
    """Run one stage to its end, showing its log; cancel it if this process is interrupted."""
    handle = runner.run(app, scheduler, cfg, workspace=workspace or None)
    try:
        tails = [
            threading.Thread(target=_tail, args=(runner, handle, role.name, replica), daemon=True)
            for role in app.roles
            for replica in range(role.num_replicas)
        ]
        for tail in tails:
            tail.start()
        while True:
            described = runner.status(handle)
            if described is None:
                raise RuntimeError(f"{scheduler} does not know {handle} any more")
            if is_terminal(described.state):
                break
            time.sleep(_POLL_SECONDS)
        for tail in tails:
            tail.join(timeout=10)
    except BaseException:
        runner.cancel(handle)
        raise
    return described


def _said_by(ended: AppStatus) -> int | None:
    """The status that the agent of a stage, or its only process, has left where the scheduler reads it."""
    try:
        report = parse(json.loads(ended.structured_error_msg))
    except ValueError:
        return None
    return report.status if report else None


def _written_by(stage: str, run_dir: str, launched: datetime) -> int | None:
    """The status of the attempt that a training has written into its run directory since it was launched."""
    if stage != "train":
        return None
    try:
        run = RunDir(run_dir)
        attempt = run.read_json(RunDir.attempt(max(run.attempts(), default=0))) or {}
        # The clocks of two machines differ a little.
        fresh = datetime.fromisoformat(attempt["started"]) >= launched - _CLOCKS
    except Exception:  # noqa: BLE001 - what cannot be read says nothing, and the stage has failed anyway
        return None
    status = attempt.get("status")
    return status if fresh and isinstance(status, int) else None


def _tail(runner: Runner, handle: str, role: str, replica: int) -> None:
    """Print the log of one replica as it grows; the first one stands for the run, others say who they are."""
    prefix = "" if replica == 0 else f"[{role} {replica}] "
    try:
        for line in runner.log_lines(handle, role, replica, should_tail=True):
            _say(prefix + line.rstrip("\n"))
    except Exception as error:  # noqa: BLE001 - a lost log is no failure of the run
        _say(f"{prefix}(its log cannot be read: {storage_error(error)})", sys.stderr)


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
        _say(storage_error(error), sys.stderr)
    if record is None or receipt is None:
        _say(f"done; {run} cannot be read from here: look at it where the stages ran")
        return
    if record.monitor is not None:
        _say(f"final {record.monitor.name}  {record.monitor.value:.6g} (step {record.step})")
    for name, value in receipt["metrics"].items():
        _say(f"{name}  {value if value is None else format(value, '.6g')}")
    _say(f"test samples scored  {receipt['samples_scored']} of {receipt['samples_expected']}, once each")
    _say(f"run directory  {run}")


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


def _say(text: str, stream: Any = None) -> None:
    print(text, file=stream or sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
