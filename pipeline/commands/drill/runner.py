"""One drill: train straight, train again under faults, compare, report."""

import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from pipeline.commands.drill import report
from pipeline.commands.drill.compare import Trained, compare
from pipeline.commands.drill.course import Course, Outcome
from pipeline.commands.drill.job import Finding, Job
from pipeline.commands.drill.notes import FOLDER, Noted
from pipeline.commands.drill.options import (
    ENDPOINTS,
    Options,
    checked,
    endpoint,
    kinds_of,
    require_new,
    require_steps,
    saving,
)
from pipeline.commands.drill.plan import Kind, plan
from pipeline.commands.drill.proxy import Proxy
from pipeline.commands.drill.report import DRILL, Report
from pipeline.errors import USER_MUST_CHANGE, UserError
from pipeline.run.run_dir import RunDir, now

__all__ = ["Options", "drill"]


def drill(options: Options) -> tuple[str, bool]:
    """Train straight and under faults, and compare.

    Args:
        options: What is to be drilled.

    Returns:
        What was found, to be read, and whether everything is as it must be.

    Raises:
        UserError: It cannot be drilled like that.
    """
    further = checked(options)
    base = RunDir(options.run_dir)
    require_new(base)
    folder = Path(tempfile.mkdtemp(prefix="pipeline-drill-"))
    found = Report(asdict(options), now())
    keep = True
    try:
        with _signals() as check:
            _Drill(options, further, folder, found, check).go()
        keep = not found.holds
    except (UserError, KeyboardInterrupt):
        keep = False
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    found.logs = str(folder) if keep else None
    base.write_json(DRILL, found.as_dict())
    return found.text(base.label), found.holds


class _Drill:
    """One drill, which writes down what it finds."""

    def __init__(
        self, options: Options, further: list[str], folder: Path, found: Report, check: Callable[[], None]
    ) -> None:
        self._options = options
        self._folder = folder
        self._found = found
        self._check = check
        self._fit = [f"--config={options.config}", *further, "--trainer.callbacks+=pipeline.commands.drill.notes.Notes"]
        # The same for every start: by this a launcher says that it starts its job again, which may then take the lease
        # over at once.
        self._launch = {"TORCHX_JOB_ID": f"drill-{uuid.uuid4().hex}"}

    def go(self) -> None:
        """Train straight and under faults, and compare."""
        found, reference = self._found, self._trained("reference")
        _say(f"training the reference: {reference.run}")
        self._straight(reference)
        if found.findings:
            return
        found.steps = reference.noted.highest
        require_steps(self._options, found.steps)
        drilled = self._trained("drilled")
        config: dict[str, Any] = yaml.safe_load(reference.run.read(RunDir.config("fit")) or b"{}")
        self._under_faults(drilled, config)
        found.repeated = drilled.noted.repeated
        if not found.findings:
            resized = [each.step or 0 for each in found.faults if each.fault.kind is Kind.RESIZE and each.injected]
            found.comparisons = compare(reference, drilled, min(resized, default=None))

    def _straight(self, trained: Trained) -> None:
        """Train the reference.

        Raises:
            UserError: The training itself says what the user must change.
        """
        job, began = self._job(trained, [], {}), time.monotonic()
        try:
            Course(job, trained.run, trained.noted, self._check).straight()
        except Finding as error:
            self._found.findings.append(f"the reference: {error}")
            if mistakes := _mistakes(job):
                raise UserError(*mistakes) from error
        finally:
            job.kill()
            self._found.seconds["reference"] = time.monotonic() - began

    def _under_faults(self, trained: Trained, config: dict[str, Any]) -> None:
        """Train once more, under faults.

        Args:
            trained: What is trained.
            config: The resolved configuration.
        """
        options, found = self._options, self._found
        kinds, found.left_out = kinds_of(options, trained.run, config)
        faults = plan(options.seed, options.faults, found.steps, kinds, options.nodes, options.processes)
        found.faults = [Outcome(fault) for fault in faults]
        more, found.pace = saving(config, options.faults, found.steps)
        found.notes += [f"added {flag}, for the configuration saves less often" for flag in more]
        straight = found.seconds["reference"]
        _say(f"{found.steps} steps in {straight:.0f} s; now again under {len(faults)} faults: {trained.run}")
        began = time.monotonic()
        with ExitStack() as stack:
            environment: dict[str, str] = {}
            proxy: Proxy | None = None
            if Kind.OUTAGE in kinds:
                proxy, environment = _before_the_storage(stack)
            job = self._job(trained, more, environment)
            stack.callback(job.kill)
            course = Course(job, trained.run, trained.noted, self._check, proxy)
            course.says = lambda outcome: _say(report.line(outcome))
            try:
                course.under(found.faults, found.steps)
                found.notes += course.clear_damaged()
            except Finding as error:
                found.findings.append(": ".join([str(error), *_mistakes(job)]))
        found.seconds["drilled"] = time.monotonic() - began

    def _trained(self, name: str) -> Trained:
        options = self._options
        noted = Noted(self._folder / f"notes-{name}", options.nodes * options.processes)
        return Trained(RunDir(f"{options.run_dir.rstrip('/')}/{name}"), noted)

    def _job(self, of: Trained, more: list[str], environment: dict[str, str]) -> Job:
        fit = [*self._fit, *more, f"--run_dir={of.run.label}"]
        environment = {**self._launch, FOLDER: str(of.noted.folder), **environment}
        logs = self._folder / f"logs-{of.run.label.rsplit('/', 1)[-1]}"
        return Job(fit, self._options.nodes, self._options.processes, environment, logs)


def _before_the_storage(stack: ExitStack) -> tuple[Proxy, dict[str, str]]:
    """A proxy before the S3 server, and what leads the job to it."""
    server = urlsplit(endpoint())
    assert server.hostname is not None
    proxy = stack.enter_context(Proxy(server.hostname, server.port or 80))
    url = server._replace(netloc=f"127.0.0.1:{proxy.port}").geturl()
    return proxy, dict.fromkeys(ENDPOINTS, url)


def _mistakes(job: Job) -> list[str]:
    """What the job says that the user must change."""
    lines = [line.partition("error: ")[2] for line in job.said().splitlines() if "error: " in line]
    return list(dict.fromkeys(lines)) if any(status == USER_MUST_CHANGE for _, status in job.endings) else []


@contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    """Let a request to end be heard between two looks at the job, so that nothing is left running."""
    asked: list[int] = []
    numbers = signal.SIGTERM, signal.SIGUSR1
    before = [signal.signal(number, lambda heard, _: asked.append(heard)) for number in numbers]

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    try:
        yield check
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - minutes pass before the table
