"""Train, wait, evaluate, show the result.

    python -m components.launch --run_dir runs/one --nodes 2 --config pipeline/configs/digits.yaml
    python -m components.launch -s local_docker --image my/image:1 --run_dir s3://bucket/one -- --trainer.max_epochs=3

All roles of a TorchX app start together, so this driver runs the stages in order. A failed training is never evaluated,
and its exit status is this one's; Ctrl-C cancels the stage that runs. On Kubernetes `--detach` submits the driver
itself, which keeps running without this machine (components/driver.py); on Slurm it submits both stages, of which the
second one waits for the first.
"""

import argparse
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torchx.runner import Runner, get_runner
from torchx.schedulers.ids import make_unique
from torchx.specs import AppDef, BindMount, parse_mounts

from components.command_line import (
    LaunchParser,
    add_parameters,
    add_scheduler_options,
    parameters_of,
    raise_at_signals,
    split_app_args,
)
from components.compat import types
from components.driver import IMAGE as DRIVER_IMAGE
from components.driver import driver, options_of
from components.evaluate import evaluate
from components.role import LaunchRequirements, missing_secrets
from components.stages import WHOLE, LaunchTarget, cfg_of, echo, run_stage, submit, submit_chain
from components.train import train
from pipeline.checkpoint.commit import newest
from pipeline.config.found_configs import find_config
from pipeline.errors import (
    DONE,
    INTERRUPTED,
    PREEMPTED,
    USER_MUST_CHANGE,
    UserError,
    did_you_mean,
    in_one_line,
    install_command,
)
from pipeline.process.end_facts import tell_of
from pipeline.process.notification import FLAG, VARIABLE, target_problem
from pipeline.run.run_dir import RECEIPT, RunDir
from pipeline.run.storage_errors import storage_error

_INSTALL = f"{install_command('report')} gives it"
_IN_CONTAINERS = ("local_docker", "kubernetes_job", "kubernetes")


def main(arguments: Sequence[str]) -> int:
    """Run the stages.

    Returns:
        The exit status: 0 done, 2 the user must change something, 75 a stage was preempted, 130 interrupted; else that
        of the process that failed first, or 1 where it is unknown.
    """
    try:
        options, parameters = _parse(arguments)
        return _launch(options, parameters, arguments)
    except UserError as error:
        for problem in error.problems:
            echo(f"error: {problem}", sys.stderr)
        return USER_MUST_CHANGE


def _launch(options: argparse.Namespace, parameters: dict[str, Any], arguments: Sequence[str]) -> int:
    target = _whom_to_tell(options, parameters)
    try:
        status, facts, how = _run_stages(options, parameters, arguments)
    except UserError as error:
        known = {"command": "launch", "run_dir": parameters["run_dir"]}
        tell_of(known, target, USER_MUST_CHANGE, in_one_line(error), {})
        raise
    if target is not None and facts:
        tell_of(facts, target, status, how, {})  # whatever a scheduler starts again, this driver has waited for
    return status


def _whom_to_tell(options: argparse.Namespace, parameters: dict[str, Any]) -> str | None:
    """Return whom this driver tells; its stages do not, unless it goes away before them.

    Raises:
        UserError: It is no target, or would be seen by everybody.
    """
    if options.notify and options.detach:
        raise UserError(f"notify: with --detach everybody would see it: give {VARIABLE} as one of --secrets")
    if problem := target_problem(options.notify or os.environ.get(VARIABLE)):
        raise UserError(problem)
    if options.detach:
        return None
    parameters["secrets"] = [name for name in parameters["secrets"] or () if name != VARIABLE] or None
    return options.notify or os.environ.pop(VARIABLE, None)


def _run_stages(
    options: argparse.Namespace, parameters: dict[str, Any], arguments: Sequence[str]
) -> tuple[int, dict[str, Any], str]:
    """Run all stages, or submit what does.

    Returns:
        The exit status; what is known of how they ended, nothing where they continue; and why, in words.
    """
    app_args = parameters.pop("app_args")
    facts: dict[str, Any] = {"command": "launch", "run_dir": parameters["run_dir"]}
    stages = [
        train(*app_args, **parameters_of(train, parameters)),
        # The flags after -- are training's: the evaluation reads model and data from the configuration of the run.
        evaluate(**parameters_of(evaluate, {**parameters, "gpu": min(parameters["gpu"], 1)})),
    ]
    with get_runner() as runner:
        target = target_of(options, runner)
        check_submitter(target, parameters)
        if target.cfg.get("kind") == "jobset":
            # One object, whose second role starts when the first one is complete.
            stages = [_as_jobset_app(*stages)]
        if options.detach:
            _detach(target, stages, parameters, arguments, options)
            return DONE, {}, ""
        raise_at_signals(signal.default_int_handler)
        for stage in stages:
            try:
                status, how = run_stage(stage, target, parameters["run_dir"])
            except KeyboardInterrupt:
                echo(
                    f"{stage.name}: {'cancelled' if target.cancels else 'keeps running without this driver'}",
                    sys.stderr,
                )
                return (INTERRUPTED if target.cancels else PREEMPTED), {}, ""
            if status != DONE:
                echo(f"{stage.name}: {how}", sys.stderr)
                return status, facts, f"{stage.name}: {how}"
    show_result(host_path(parameters["run_dir"], parameters["mounts"]))
    return DONE, facts, "trained and evaluated"


def check_submitter(target: LaunchTarget, parameters: dict[str, Any]) -> None:
    """Raise a UserError for what this machine lacks, or for what does not survive the containers of the stages."""
    if target.scheduler.startswith("local"):
        # On this machine the stages run in this Python.
        os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", "")))
        if problems := missing_secrets(parameters["secrets"] or ()):
            raise UserError(*problems)
    here = target.scheduler in ("local_cwd", "slurm") and not target.cfg.get("job_dir")
    if target.scheduler in _IN_CONTAINERS or target.cfg.get("container", "none") != "none":
        _require_persistent_run_dir(parameters["run_dir"], parameters["mounts"])
    elif here and not os.path.exists(find_config(parameters["config"])):
        raise UserError(f"config={parameters['config']!r} does not exist here; the stages run in {os.getcwd()}")


def target_of(options: argparse.Namespace, runner: Runner) -> LaunchTarget:
    """Return where the stages run."""
    if options.scheduler not in runner.scheduler_backends():
        known = ", ".join(sorted(runner.scheduler_backends()))
        raise UserError(f"scheduler={options.scheduler!r} must be one of {known}")
    cfg, problems = run_options(runner, options, "scheduler_args")
    allowed = [name for name, _ in runner.scheduler_run_opts(options.scheduler)]
    if options.workspace and "://" not in options.workspace and not os.path.isdir(options.workspace):
        problems.append(f"workspace={options.workspace!r} is no folder here: images would be patched with nothing")
    if (options.name or options.detach) and "app_id" not in allowed:
        flag = "detach" if options.detach else "name"
        problems.append(f"{flag}: {options.scheduler} cannot find a run by its name; use slurm or kubernetes_job")
    if problems:
        raise UserError(*problems)
    name = options.name or (make_unique("pipeline") if options.detach else "")
    return LaunchTarget(runner, options.scheduler, cfg, options.workspace, name, options.on_signal == "cancel")


def run_options(runner: Runner, options: argparse.Namespace, flag: str) -> tuple[dict[str, Any], list[str]]:
    """Return the run options that a flag of the command line holds, and what is wrong with their names."""
    # TorchX takes the flags of another program, such as sbatch's, for options of its own.
    text = re.sub(r"(--[\w-]+)=", r"\1 ", getattr(options, flag))
    known = runner.scheduler_run_opts(options.scheduler)
    allowed = [name for name, _ in known]
    try:
        problems = [
            f"{flag}={name}: {options.scheduler} has no such run option{did_you_mean(name, allowed)}; "
            f"`torchx runopts {options.scheduler}` explains them"
            for name in types.to_dict(text)
            if name not in allowed
        ]
        return {} if problems else known.cfg_from_str(text), problems
    except ValueError as error:
        raise UserError(f"{flag}={text!r}: {error}; write a=1,b=2") from error


def _as_jobset_app(train: AppDef, evaluate: AppDef) -> AppDef:
    """Return both stages as one app, for a launcher that starts the second role after the first."""
    (role,) = evaluate.roles
    required = replace(LaunchRequirements.of(role), after=train.roles[0].name)
    return AppDef(name=WHOLE, roles=[*train.roles, replace(role, metadata=required.metadata())])


def _detach(
    target: LaunchTarget,
    stages: Sequence[AppDef],
    parameters: dict[str, Any],
    arguments: Sequence[str],
    options: argparse.Namespace,
) -> None:
    """Submit what runs the stages without this process, and print how to look at it."""
    if target.scheduler == "slurm":
        for job in submit_chain(stages, target):
            echo(f"submitted {target.name}: python -m components.jobs {{status,logs,cancel}} {job}")
        return
    if len(stages) == 1:
        handle = submit(stages[0], target)
    else:
        # A mistake in a stage is reported here and not in the driver's log.
        for stage in stages:
            target.runner.dryrun(stage, target.scheduler, cfg_of(stage, target))
        own = {name: parameters[name] for name in ("env", "secrets", "retries")}
        app = driver(arguments, target.name, image=options.driver_image, **own)
        given, problems = run_options(target.runner, options, "driver_args")
        if problems:
            raise UserError(*problems)
        cfg = {**options_of(target.cfg, given), "app_id": target.name}
        handle = target.runner.run(app, target.scheduler, cfg)
    echo(f"submitted {target.name}: python -m components.jobs {{status,logs,cancel}} {handle}")


def _require_persistent_run_dir(run_dir: str, mounts: Sequence[str] | None) -> None:
    """Raise a UserError for a folder within a container: it is gone with it, and the next stage finds nothing there."""
    above = [mount.dst_path.rstrip("/") for mount in parse_mounts(list(mounts or ())) if mount.dst_path]
    if "://" not in run_dir and not any(f"{run_dir}/".startswith(f"{folder}/") for folder in above):
        raise UserError(
            f"run_dir={run_dir!r} is a folder within each container and is gone with it: give a URL such as "
            "s3://bucket/run, or a folder below a mount (--mounts type=bind,src=/on/the/host,dst=/runs --run_dir "
            "/runs/one)"
        )


def host_path(run_dir: str, mounts: Sequence[str] | None) -> str:
    """Return where this machine has a run directory that the containers have below a mount."""
    for mount in parse_mounts(list(mounts or ())):
        if isinstance(mount, BindMount) and f"{run_dir}/".startswith(f"{mount.dst_path.rstrip('/')}/"):
            return mount.src_path.rstrip("/") + run_dir[len(mount.dst_path.rstrip("/")) :]
    return run_dir


def show_result(run_dir: str) -> None:
    """Print the result of the run, read from its run directory."""
    run = RunDir(run_dir)
    try:
        record, receipt = newest(run), run.read_json(RECEIPT)
    except Exception as error:  # noqa: BLE001 - the stages succeeded, whatever this machine may read
        record, receipt = None, None
        echo(storage_error(error), sys.stderr)
    if record is None or receipt is None:
        echo(f"done; {run} cannot be read from here: look at it where the stages ran")
        return
    if record.monitor is not None:
        echo(f"final {record.monitor.name}  {record.monitor.value:.6g} (step {record.step})")
    show_metrics(receipt["metrics"])
    if receipt.get("unproven"):
        echo(f"test samples scored  {receipt['samples_scored']}, not proven: {'; '.join(receipt['unproven'])}")
    else:
        echo(f"test samples scored  {receipt['samples_scored']} of {receipt['samples_expected']}, once each")
    echo(f"run directory  {run}")
    show_report(run.label)


def show_metrics(metrics: Mapping[str, float | None]) -> None:
    """Print what an evaluation has measured; JSON has null for what is not finite."""
    for name, value in metrics.items():
        echo(f"{name}  {'nan' if value is None else format(value, '.6g')}")


def show_report(url: str) -> None:
    """Write the page on a run, or a folder of them, where this machine has what it needs; the runs are done anyway."""
    try:
        from pipeline.commands.report.command import write_report  # noqa: PLC0415 - its packages are optional

        echo(f"report  {write_report([url])}")
    except ImportError as error:
        echo(f"no report: it needs a package that is not installed here ({error}): {_INSTALL}", sys.stderr)
    except UserError as error:
        echo(f"no report: {error}", sys.stderr)
    except Exception as error:  # noqa: BLE001 - the stages succeeded
        echo(f"no report: {storage_error(error)}; python -m pipeline report --run_dir {url} tries again", sys.stderr)


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Split the command line into the driver's own options and the parameters of the components."""
    parser = LaunchParser("launch", __doc__)
    add_scheduler_options(parser)
    add = parser.add_argument
    add("--detach", action="store_true", help="submit what runs the stages, and exit (slurm, kubernetes_job)")
    add("--name", default="", help="name of this pipeline, by which it finds its stages again (slurm, kubernetes_job)")
    add("--driver_image", default=DRIVER_IMAGE, help=f"image of the driver (default: {DRIVER_IMAGE})")
    add("--driver_args", default="", help="its own run options, where they differ from its stages'", metavar="A=1,B=2")
    add(FLAG, default="", help=f"whom to tell once how it has ended: a webhook or a command (default: {VARIABLE})")
    names = add_parameters(parser)
    own, app_args = split_app_args(arguments)
    options = parser.parse_args(own)
    return options, {"app_args": app_args, **{name: getattr(options, name) for name in names}}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
