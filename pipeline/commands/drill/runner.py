"""One drill: train undisturbed, train again under faults, compare, report."""

import shutil
import signal
import sys
import tempfile
import time
import uuid
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from pipeline.checkpoint.commit import committed
from pipeline.commands.drill import options as checks
from pipeline.commands.drill.compare import TrainedRun, compare
from pipeline.commands.drill.fault_result import FaultResult
from pipeline.commands.drill.injector import FaultInjector
from pipeline.commands.drill.local_job import JobFailure, LocalJob
from pipeline.commands.drill.plan import FaultKind, plan
from pipeline.commands.drill.proxy import ForwardProxy, Proxy
from pipeline.commands.drill.report import DRILL, DrillReport, progress_line
from pipeline.commands.drill.step_log import FOLDER, StepLog
from pipeline.errors import USER_MUST_CHANGE, UserError
from pipeline.run.run_dir import RunDir, now


def drill(options: Namespace) -> tuple[str, bool]:
    """Train undisturbed and under faults, and compare.

    Args:
        options: Of the command line, see `pipeline.commands.drill.command`.

    Returns:
        The report, and whether everything is as it must be.

    Raises:
        UserError: It cannot be drilled like that.
    """
    flags, base = checks.fit_flags(options), RunDir(options.run_dir)
    checks.require_new(base)
    folder = Path(tempfile.mkdtemp(prefix="pipeline-drill-"))
    report = DrillReport(vars(options), now())
    keep = True
    try:
        with _stop_signals():
            _Drill(options, flags, folder, report).run()
        keep = not report.holds
    except (UserError, KeyboardInterrupt):
        keep = False
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    report.logs = str(folder) if keep else None
    base.write_json(DRILL, report.as_dict())
    return report.text(base.label), report.holds


class _Drill:
    """One drill, which fills in its report."""

    def __init__(self, options: Namespace, flags: list[str], folder: Path, report: DrillReport) -> None:
        self._options, self._folder, self._report = options, folder, report
        callback = "--trainer.callbacks+=pipeline.commands.drill.step_log.StepLogger"
        memory = f"--memory_checkpoints={str(options.recovery == 'memory').lower()}"
        self._fit = [f"--config={options.config}", memory, *flags, callback]
        # The same for every start: by this a launcher says that it restarts its own job, which may then take over the
        # lease at once.
        self._launch: dict[str, str] = {"TORCHX_JOB_ID": f"drill-{uuid.uuid4().hex}"}

    def run(self) -> None:
        """Train undisturbed and under faults, and compare."""
        with ForwardProxy() as data:
            self._data = data
            environment, self._unread = checks.data_environment(RunDir(self._options.run_dir), data.port)
            self._launch |= environment
            self._run()

    def _run(self) -> None:
        report, reference, drilled = self._report, self._trained("reference"), self._trained("drilled")
        _progress(f"training the reference: {reference.run}")
        self._train_undisturbed(reference)
        if report.findings:
            return
        report.steps = reference.log.highest
        checks.require_steps(self._options, report.steps)
        config: dict[str, Any] = yaml.safe_load(reference.run.read(RunDir.config("fit")) or b"{}")
        epochs = next((record.epoch for record in committed(reference.run)), 0)
        self._unread = self._unread or ("" if self._data.used else "training reads nothing over HTTP")
        self._train_under_faults(drilled, config, epochs)
        report.repeated_steps = drilled.log.repeated
        if not report.findings:
            injected = [each for each in report.faults if each.injected]
            resized = [each.step or 0 for each in injected if each.fault.kind is FaultKind.RESIZE]
            report.comparisons = compare(reference, drilled, min(resized, default=None), self._resized_reference)

    def _resized_reference(self) -> TrainedRun:
        """Train undisturbed with one node less, as a resized run did for a while."""
        trained = self._trained("resized", self._options.nodes - 1)
        _progress(f"training with one node less, undisturbed: {trained.run}")
        self._train_undisturbed(trained, self._options.nodes - 1)
        return trained

    def _train_undisturbed(self, trained: TrainedRun, nodes: int | None = None) -> None:
        name = trained.run.label.rsplit("/", 1)[-1]
        job, began = self._job(trained, [], {}, nodes), time.monotonic()
        try:
            FaultInjector(job, trained.run, trained.log).run_undisturbed()
        except JobFailure as error:
            self._report.findings.append(f"the {name}: {error}")
            if mistakes := _user_errors(job):
                raise UserError(*mistakes) from error
        finally:
            job.kill()
            self._report.seconds[name] = time.monotonic() - began

    def _train_under_faults(self, trained: TrainedRun, config: dict[str, Any], epochs: int) -> None:
        options, report = self._options, self._report
        kinds, report.left_out = checks.possible_kinds(options, trained.run, config, epochs, self._unread)
        faults = plan(options.seed, options.faults, report.steps, kinds, options.nodes, options.processes)
        report.faults = [FaultResult(fault) for fault in faults]
        more, report.pace = checks.frequent_saves(config, options, report.steps)
        report.notes += [f"added {flag}, since the configuration saves less often" for flag in more]
        undisturbed = report.seconds["reference"]
        _progress(f"{report.steps} steps in {undisturbed:.0f} s; again under {len(faults)} faults: {trained.run}")
        began = time.monotonic()
        with ExitStack() as stack:
            proxies: dict[FaultKind, Proxy] = {FaultKind.OUTAGE_DATA: self._data}
            environment: dict[str, str] = {}
            if FaultKind.OUTAGE_START in kinds:
                storage, environment = _proxied_storage(stack)
                proxies |= dict.fromkeys((FaultKind.OUTAGE, FaultKind.OUTAGE_START), storage)
            job = self._job(trained, more, environment)
            stack.callback(job.kill)
            injector = FaultInjector(job, trained.run, trained.log, proxies)
            try:
                injector.run_under(report.faults, report.steps, lambda result: _progress(progress_line(result)))
                report.notes += injector.remove_truncated()
            except JobFailure as error:
                report.findings.append(": ".join([str(error), *_user_errors(job)]))
        report.seconds["drilled"] = time.monotonic() - began

    def _trained(self, name: str, nodes: int | None = None) -> TrainedRun:
        log = StepLog(self._folder / f"steps-{name}", (nodes or self._options.nodes) * self._options.processes)
        return TrainedRun(RunDir(f"{self._options.run_dir.rstrip('/')}/{name}"), log)

    def _job(
        self, trained: TrainedRun, more: list[str], environment: dict[str, str], nodes: int | None = None
    ) -> LocalJob:
        fit = [*self._fit, *more, f"--run_dir={trained.run.label}"]
        environment = {**self._launch, FOLDER: str(trained.log.folder), **environment}
        logs = self._folder / f"logs-{trained.run.label.rsplit('/', 1)[-1]}"
        return LocalJob(fit, nodes or self._options.nodes, self._options.processes, environment, logs)


def _proxied_storage(stack: ExitStack) -> tuple[Proxy, dict[str, str]]:
    """Return a proxy before the S3 server, and the environment that leads the job to it."""
    server = urlsplit(checks.endpoint())
    assert server.hostname is not None
    proxy = stack.enter_context(Proxy(server.hostname, server.port or 80))
    url = server._replace(netloc=f"127.0.0.1:{proxy.port}").geturl()
    return proxy, dict.fromkeys(checks.ENDPOINTS, url)


def _user_errors(job: LocalJob) -> list[str]:
    """Return what the job says that the user must change."""
    lines = [line.partition("error: ")[2] for line in job.output().splitlines() if "error: " in line]
    return list(dict.fromkeys(lines)) if any(status == USER_MUST_CHANGE for _, status in job.endings) else []


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 end the drill as Ctrl-C does, which leaves no process running."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - minutes pass before the report
