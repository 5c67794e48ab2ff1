"""Faults are injected at their moment, and what becomes of the job is judged: real processes, but no training."""

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from pipeline.checkpoint.commit import committed
from pipeline.commands.drill import injector
from pipeline.commands.drill.fault_result import FaultResult
from pipeline.commands.drill.injector import FaultInjector
from pipeline.commands.drill.local_job import JobFailure, LocalJob
from pipeline.commands.drill.plan import Fault, FaultKind
from pipeline.commands.drill.proxy import Proxy
from pipeline.commands.drill.step_log import StepLog
from pipeline.run.run_dir import RunDir
from tests.support.commands import ROOT
from tests.support.processes import blocks_or_catches

pytestmark = pytest.mark.timeout(60)
STEPS = 40
WORKER = """
    import json, os, signal, socket, sys, time
    from pathlib import Path
    from pipeline.checkpoint.commit import CommitRecord, examined, write_record
    from pipeline.run.run_dir import RunDir

    run, log, flaw, port = RunDir(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    while port != "0":
        try:
            socket.create_connection(("127.0.0.1", int(port))).close()
            break
        except OSError:
            Path(os.environ["PIPELINE_CACHE_DIR"], "cold").touch()
            with open(log.parent / "node-0.txt", "a") as said:
                said.write("the server does not answer, retrying\\n")
            if flaw == "does not wait":
                sys.exit(1)
            time.sleep(0.05)
    asked = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number) if flaw != "dies of it" else os._exit(143))
    began = time.monotonic()
    while flaw.startswith("starts") and time.monotonic() - began < 0.5:
        time.sleep(0.02)
        if asked and flaw == "starts":
            os._exit(75)

    def commit(step):
        run.write(RunDir.checkpoint(step), b"x" * 100)
        record = CommitRecord(step, step // 10, 0, 100, "sha256:00", None, 1, "", ["steps"])
        write_record(run, record, overwrite=True)

    good = [step for step, found in examined(run) if isinstance(found, CommitRecord)]
    step = 0 if flaw == "forgets" or not good else good[0]
    with open(log / "rank-0.jsonl", "a", buffering=1) as file:
        last = min([40, *(10 * int(argument.rpartition("=")[2]) for argument in sys.argv[5:])])
        if last < 40:
            (log / "limited").touch()
        elif flaw == "finished" and (log / "limited").exists():
            sys.exit(0)
        while step < last:
            if asked:
                if flaw != "saves nothing":
                    commit(step)
                sys.exit(1 if flaw == "crashes" else 75)
            step += 1
            file.write(json.dumps({"step": step, "losses": ["0x1p+0"], "pid": os.getpid(), "at": time.time()}) + "\\n")
            if step % 3 == 0:
                commit(step)
            if flaw == "dies" and step == 5:
                sys.exit(3)
            if step == last < 40:
                commit(step)
            pace = log / "pace"
            time.sleep(0.01 + (float(pace.read_text()) if pace.exists() else 0))
"""


class StepsOnly(LocalJob):
    """A job of one node, whose agent does the steps itself: it logs and commits them, and trains nothing."""

    program: tuple[str, ...] = ()

    def workers(self, node: int) -> list[int]:
        return [pid for pid in self.agents() if blocks_or_catches(pid, signal.SIGTERM)]

    def _start(self, node: int) -> subprocess.Popen[bytes]:
        self._seen.discard(node)
        line = [sys.executable, "-c", *self.program, *self.more]
        return subprocess.Popen(line, cwd=ROOT, stdin=subprocess.DEVNULL, env=self.environment)


@pytest.fixture
def inject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FaultInjector]]:
    """Make the injector of a job with a flaw."""
    monkeypatch.setattr(injector, "SECONDS_PER_FAULT", 1.0)
    jobs: list[LocalJob] = []

    def made(flaw: str = "none", proxies: Mapping[FaultKind, Proxy] | None = None) -> FaultInjector:
        run, log, job = RunDir(str(tmp_path / "run")), StepLog(tmp_path / "steps", 1), StepsOnly([], 1, 1, {}, tmp_path)
        port = next((proxy.port for proxy in (proxies or {}).values()), 0)
        job.program = (dedent(WORKER), run.url, str(log.folder), flaw, str(port))
        jobs.append(job)
        return FaultInjector(job, run, log, proxies)

    yield made
    for job in jobs:
        job.kill()


def results(*kinds: FaultKind) -> list[FaultResult]:
    """Faults after steps 7, 15 and so on."""
    return [FaultResult(Fault(n, kind, 8 * n - 1, 0.0, 0, 0, 0.0)) for n, kind in enumerate(kinds, 1)]


def test_each_fault_that_loses_nothing_has_held(inject: Callable[..., FaultInjector]) -> None:
    given, reported = results(FaultKind.KILL_AGENT, FaultKind.TERM_ALL, FaultKind.TRUNCATE), []
    made = inject()
    made.run_under(given, STEPS, reported.append)
    assert reported == given
    assert [result.problems for result in given] == [[], [], []]
    assert all(result.held for result in given)
    assert [result.ended for result in given] == [[-9], [75], [-9]]
    assert all(result.seconds is not None for result in given)
    assert [result.step or 0 for result in given] >= [7, 15, 23]
    killed, asked, truncated = given
    assert (killed.resumed or 0) % 3 == 1, "it resumes from the last commit"
    assert asked.repeated == 0, "who is asked saves the step that it has done"
    assert truncated.repeated > 0
    assert made._log.highest == STEPS
    assert made.remove_truncated() == [], "the step was committed again"


@pytest.mark.parametrize(
    ("flaw", "kind", "words"),
    [
        ("forgets", FaultKind.KILL_ALL, "it resumed with step 1, though step"),
        ("saves nothing", FaultKind.TERM_AGENT, "but only step"),
        ("crashes", FaultKind.TERM_AGENT, "an agent ended with 1"),
        ("dies of it", FaultKind.TERM_TWICE, "an agent ended with 143"),
        ("dies of it", FaultKind.TERM_START, "an agent ended with 143"),
        ("finished", FaultKind.EXTEND, "taken for finished at step 10, though it was extended"),
    ],
)
def test_what_is_lost_is_a_problem(
    inject: Callable[..., FaultInjector], flaw: str, kind: FaultKind, words: str
) -> None:
    (result,) = given = results(kind)
    inject(flaw).run_under(given, STEPS, lambda _: None)
    assert result.injected
    assert not result.held
    assert words in " ".join(result.problems)


def test_who_is_asked_while_it_starts_and_who_is_asked_twice_end_with_75(
    inject: Callable[..., FaultInjector],
) -> None:
    given = results(FaultKind.TERM_TWICE, FaultKind.TERM_START)
    inject("starts").run_under(given, STEPS, lambda _: None)
    assert [result.problems for result in given] == [[], []]
    assert [result.ended for result in given] == [[75], [-9, 75]]
    assert all(result.held for result in given)


def test_a_training_that_is_extended_and_killed_trains_on(inject: Callable[..., FaultInjector]) -> None:
    (result,) = given = results(FaultKind.EXTEND)
    made = inject()
    made.run_under(given, STEPS, lambda _: None)
    assert result.held, result.problems
    assert result.ended == [75, 0, -9]
    assert made._log.highest == STEPS
    assert 10 in [record.step for record in committed(made._run)], "the epoch at whose end it was extended"


@pytest.mark.parametrize(
    ("kind", "flaw"),
    [
        (FaultKind.OUTAGE_START, "none"),
        (FaultKind.OUTAGE_START, "does not wait"),
        (FaultKind.OUTAGE_DATA, "needs nothing"),
    ],
)
def test_a_start_while_something_is_away_must_wait_for_it(
    inject: Callable[..., FaultInjector], kind: FaultKind, flaw: str
) -> None:
    (result,) = given = results(kind)
    with socket.create_server(("127.0.0.1", 0)) as server, Proxy(*server.getsockname()) as proxy:
        made = inject(flaw, {kind: proxy})
        if flaw == "needs nothing":
            made._job.program = (*made._job.program[:-1], "0")
        environment = dict(made._job.environment)
        made.run_under(given, STEPS, lambda _: None)
        socket.create_connection(("127.0.0.1", proxy.port)).close()  # it is back
    assert made._job.environment == environment, "the cache is the user's own again"
    assert result.injected
    assert result.ended[0] == -signal.SIGKILL
    if flaw == "does not wait":
        assert {"an agent ended with 1"} == set(result.problems)
    else:
        assert result.ended == [-signal.SIGKILL]
        assert result.held, result.problems
        assert result.resumed is not None
    assert made._log.highest == STEPS


def test_an_undisturbed_job_comes_to_its_end(inject: Callable[..., FaultInjector]) -> None:
    made = inject()
    made.run_undisturbed()
    assert [entry.step for entry in made._log.first] == list(range(1, STEPS + 1))
    assert next(committed(made._run)).step == STEPS // 3 * 3


def test_an_undisturbed_job_that_fails_ends_the_drill(inject: Callable[..., FaultInjector]) -> None:
    with pytest.raises(JobFailure, match="an agent ended with 3, though nothing was done to it"):
        inject("dies").run_undisturbed()


def test_a_fault_that_comes_too_late_is_not_injected(inject: Callable[..., FaultInjector]) -> None:
    late = FaultResult(Fault(1, FaultKind.KILL_ALL, STEPS + 1, 0.0, 0, 0, 0.0))
    inject().run_under([late], STEPS, lambda _: None)
    assert not late.injected
    assert not late.held


def test_a_job_that_does_nothing_is_given_up(
    inject: Callable[..., FaultInjector], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(injector, "_STALLED", 0.0)
    with pytest.raises(JobFailure, match="no step and no end for 0 s after step 0"):
        inject().run_undisturbed()
