"""A worker that is forked from the standby is in everything what a cold one is, and nothing is left of a standby."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.agent import pdeathsig, standby
from pipeline.agent.arguments import parser
from pipeline.agent.signals import Signals, StopRequested
from pipeline.agent.standby import ForkedWorker, Standby, command_of, is_standby
from pipeline.commands.drill.local_job import is_running
from tests.support.commands import ROOT, assert_one_message, command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are standbys on Linux only")
Start = Callable[..., Standby]


def program(*arguments: object) -> list[str]:
    return [sys.executable, "-u", "-m", "tests.support.process_state", *map(str, arguments)]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a standby, which is ready."""
    monkeypatch.chdir(ROOT)
    made: list[Standby] = []

    def started(*arguments: object, ready: bool = True) -> Standby:
        made.append(Standby(program(*arguments)))
        if ready:
            made[-1].await_ready(Signals())
        return made[-1]

    yield started
    for each in made:
        each.end()


def fork(source: Standby, *arguments: object, streams: Sequence[int] = (0, 1, 2), **more: str) -> ForkedWorker:
    worker = source.fork(program(*arguments), {**os.environ, **more}, streams)
    assert worker is not None
    return worker


def until(happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def shown(path: Path) -> dict[str, Any]:
    until(path.exists)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_forked_worker_is_in_everything_what_a_cold_one_is(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOVED_BY_AN_IMPORT", "1")
    own = {**os.environ, "RANK": "3", "LOCAL_RANK": "1", "TORCHELASTIC_X": "x"}
    path = tmp_path / "state.json"
    with (tmp_path / "cold.txt").open("w") as log:
        process = subprocess.Popen(
            [*pdeathsig.tied(), *program("show", path)], env=own, stdout=log, stderr=log, start_new_session=True
        )
    cold = shown(path)
    process.kill()
    process.wait()
    path.unlink()
    source = start("show", path)
    with (tmp_path / "warm.txt").open("w") as log:
        worker = source.fork(program("show", path), own, (0, log.fileno(), log.fileno()))
    assert worker is not None
    warm = shown(path)
    assert not is_standby(worker.pid)
    worker.send_signal(signal.SIGKILL)
    assert worker.wait(10) == -signal.SIGKILL
    assert warm == cold
    assert cold["parent"] == os.getpid()
    assert cold["dies with its parent"] == signal.SIGKILL
    assert cold["C environment"]["RANK"] == "3"
    assert cold["environment"]["SET_BY_AN_IMPORT"] == "1"
    assert "REMOVED_BY_AN_IMPORT" not in cold["environment"]
    assert (tmp_path / "warm.txt").read_text() == (tmp_path / "cold.txt").read_text() == "shown\n"


@pytest.mark.parametrize(
    ("how", "value", "code"),
    [("exit", 0, 0), ("exit", 2, 2), ("exit", 75, 75), ("exit", 255, 255), ("kill", 9, -9), ("kill", 6, -6)],
)
def test_its_exit_status_or_signal_is_known_exactly(start: Start, how: str, value: int, code: int) -> None:
    source = start(how, value)
    workers = [fork(source, how, value) for _ in range(2)]
    assert len({worker.pid for worker in workers}) == 2
    assert [worker.wait(20) for worker in workers] == [code, code]
    assert [worker.poll() for worker in workers] == [code, code]
    workers[0].send_signal(signal.SIGKILL)  # to nobody: its number may be another process's by now
    with pytest.raises(ChildProcessError):
        os.waitpid(workers[0].pid, os.WNOHANG)


def test_an_environment_may_be_as_large_as_the_kernel_allows(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for count in range(8):
        monkeypatch.setenv(f"MY_SERVICE_{count}", "x" * 100_000)
    assert fork(start("exit", 3), "exit", 3).wait(20) == 3


def test_one_that_runs_is_waited_for_no_longer_than_asked(start: Start, tmp_path: Path) -> None:
    worker = fork(start("show", tmp_path / "state"), "show", tmp_path / "state")
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.05)
    worker.send_signal(signal.SIGKILL)
    assert worker.wait(20) == -signal.SIGKILL


AGENT = """
import os, sys, time
from pipeline.agent.signals import Signals
from pipeline.agent.standby import Standby
command = sys.argv[2:]
source = Standby(command)
source.await_ready(Signals())
worker = source.fork(command, dict(os.environ), (0, 1, 2))
with open(sys.argv[1], "w") as file:
    file.write(f"{source._process.pid} {worker.pid}\\n")
time.sleep(60)
"""


def test_standby_and_workers_die_with_an_agent_that_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    line = [sys.executable, "-c", AGENT, str(pids), *program("show", tmp_path / "state")]
    agent = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE)
    until(lambda: pids.exists() and pids.read_text().endswith("\n") and (tmp_path / "state").exists())
    own, worker = map(int, pids.read_text().split())
    assert is_running(own)
    assert is_running(worker)
    agent.kill()
    assert agent.wait() == -signal.SIGKILL
    until(lambda: not is_running(own) and not is_running(worker))
    assert agent.stdout is not None
    with agent.stdout as out:
        assert out.read() == b"shown\n", "its end is seen by who reads it: no standby holds it open"


def test_a_standby_that_is_killed_is_renewed_and_workers_start_cold_until_then(
    start: Start, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = start("exit", 3)
    assert source._process is not None
    first = source._process.pid
    assert is_standby(first)
    line = Path(f"/proc/{first}/cmdline").read_text().rstrip("\0").split("\0")
    assert line[3:] == ["-m", "pipeline.agent.standby"], "nobody who looks for a worker finds it"
    os.kill(first, signal.SIGKILL)
    until(lambda: not is_running(first))
    assert source.fork(program("exit", 3), dict(os.environ), (0, 1, 2)) is None
    assert "starting the workers cold" in capfd.readouterr().err
    source.tend()
    assert source._process is None, "not at once: the workers are starting"
    monkeypatch.setattr(standby, "_RENEW_AFTER", 0.0)
    source.tend()
    source.await_ready(Signals())
    assert fork(source, "exit", 3).wait(20) == 3


def test_one_that_ends_unasked_is_said_and_another_one_is_there_for_the_next_workers(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    source = start("exit", 3)
    assert source._process is not None
    source._process.kill()
    until(lambda: source._process is None or source.tend() or source._process is None)
    assert capfd.readouterr().err == "standby: ended with status -9\n"
    source.await_ready(Signals())
    assert fork(source, "exit", 3).wait(20) == 3


def test_imports_that_start_a_thread_make_workers_start_cold_and_the_line_names_it(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    source = start("thread", 3)
    assert source.fork(program("thread", 3), dict(os.environ), (0, 1, 2)) is None
    assert "standby: imports have started 1 threads (" in capfd.readouterr().err
    source.await_ready(Signals())
    assert source._process is None, "it would come to the same"


def test_imports_that_fail_are_left_to_the_workers_to_report(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    source = start("fail", 3)
    assert source.fork(program("fail", 3), dict(os.environ), (0, 1, 2)) is None
    assert capfd.readouterr().err == "standby: imports have failed: RuntimeError: starting the workers cold\n"


def test_where_nothing_more_can_be_forked_workers_start_cold_at_once(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    source, began = start("full", 3), time.monotonic()
    assert source.fork(program("full", 3), dict(os.environ), (0, 1, 2)) is None
    assert time.monotonic() - began < standby._ANSWER_SECONDS
    assert capfd.readouterr().err == "standby: [Errno 9] Bad file descriptor: starting the workers cold\n"


def test_where_workers_cannot_be_adopted_they_start_cold_at_once(
    start: Start, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(standby, "_adopt_orphans", lambda wanted: None)
    source, began = start("exit", 3), time.monotonic()
    assert source.fork(program("exit", 3), dict(os.environ), (0, 1, 2)) is None
    assert time.monotonic() - began < standby._ANSWER_SECONDS
    assert "may not adopt a worker" in capfd.readouterr().err


def test_signals_that_go_to_all_processes_of_a_node_leave_the_standby_there(start: Start) -> None:
    source = start("exit", 3)
    assert source._process is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        source._process.send_signal(number)
    assert fork(source, "exit", 3).wait(20) == 3


def test_code_that_has_changed_since_is_never_run_from_memory(
    start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import edited\n")
    (tmp_path / "edited.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    source = start("exit", 0)
    assert fork(source, "exit", 0).wait(20) == 0
    (tmp_path / "edited.py").write_text("raise SystemExit(5)\n")
    assert source.fork(program("exit", 0), dict(os.environ), (0, 1, 2)) is None
    reason = f"standby: {tmp_path / 'edited.py'} has changed: starting the workers cold\n"
    assert capfd.readouterr().err == reason


def test_another_environment_than_the_imports_have_seen_starts_cold(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    source = start("exit", 0)
    assert source.fork(program("exit", 0), {**os.environ, "OMP_NUM_THREADS": "7"}, (0, 1, 2)) is None
    assert (
        capfd.readouterr().err == "standby: OMP_NUM_THREADS is another one for the workers: starting the workers cold\n"
    )


def test_another_program_starts_cold_and_in_silence(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    source = start("exit", 0)
    assert source.fork(program("exit", 1), dict(os.environ), (0, 1, 2)) is None
    assert capfd.readouterr().err == ""
    assert fork(source, "exit", 0).wait(20) == 0


def test_a_signal_is_obeyed_while_the_standby_imports(start: Start) -> None:
    signals = Signals()
    signals.received.append(signal.SIGTERM)
    source = start("exit", 0, ready=False)
    with pytest.raises(StopRequested):
        source.await_ready(signals)


FIT = ("-m", "pipeline", "fit", "--run_dir=runs/x")


@pytest.mark.parametrize(
    ("arguments", "there_is_one"),
    [
        (FIT, True),
        (("--standby=true", *FIT), True),
        (("--standby=false", *FIT), False),
        (("-m", "pipeline", "predict", "--run_dir=runs/x"), True),
        (("-m", "pipeline", "verify", "runs/x"), False),
        (("-m", "mine", "fit"), False),
        (("train.py", "fit"), False),
        (("--virtual-local-rank", *FIT), False),
        (("--numa-binding=node", *FIT), False),
    ],
)
def test_there_is_a_standby_for_what_imports_much_unless_it_is_turned_off(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], there_is_one: bool
) -> None:
    monkeypatch.delenv("PET_STANDBY", raising=False)
    monkeypatch.setattr(standby, "_has_gpu", lambda: False)
    expected = [sys.executable, "-u", *arguments[arguments.index("-m") :]] if there_is_one else []
    assert command_of(parser().parse_args(arguments)) == expected


def test_on_a_gpu_there_is_one_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PET_STANDBY", raising=False)
    monkeypatch.setattr(standby, "_has_gpu", lambda: True)
    assert not command_of(parser().parse_args(FIT))
    assert command_of(parser().parse_args(["--standby=true", *FIT]))


def test_another_choice_is_the_users_mistake() -> None:
    ended = command(sys.executable, "-m", "pipeline.agent", "--standby=on", *FIT)
    assert_one_message(ended, "standby='on' must be one of auto, true, false")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What two ranks of the pipeline were given in two attempts, started cold and from a standby."""
    folders = {}
    for name in SET_BY_IMPORTS:  # also by those of the tests
        os.environ.pop(name, None)
    for chosen in ("false", "true"):
        folder = folders[chosen] = tmp_path_factory.mktemp(chosen)
        ended = command(
            *(sys.executable, "-m", "pipeline.agent", f"--standby={chosen}", "--nproc-per-node=2", "-m", "pipeline"),
            *("fit", "--model=tests.support.models.Regression", "--data=tests.support.models.Own"),
            *("--trainer.max_epochs=1", "--trainer.enable_model_summary=false", f"--run_dir={folder / 'run'}"),
            "--trainer.callbacks=tests.support.shown_ranks.ShowsItsProcess",
            f"--trainer.callbacks.folder={folder}",
            env={"OMP_NUM_THREADS": "2", "TORCH_CPP_LOG_LEVEL": "ERROR"},
            timeout=200,
        )
        assert ended.status == 0, ended.text
        assert "rank 1 on" in ended.err
        assert "killed by SIGKILL: restart 1 of 3" in ended.err
        assert "cold" not in ended.err
        (folder / "said").write_text(ended.text)
    return folders


SET_BY_IMPORTS = ("PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR")
OWN = ("parent", "drawn")
"""What is another one in each process."""
OWN_VARIABLES = (
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_ERROR_FILE",
    "PIPELINE_STARTED_RUNS",
    "PIPELINE_HOST_MEMORY",
    "PET_STANDBY",
)


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.parametrize("attempt", [0, 1])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_of_the_pipeline_is_in_everything_what_a_cold_one_is(
    ranks: dict[str, Path], attempt: int, rank: int
) -> None:
    cold, warm = (json.loads((ranks[chosen] / f"{attempt}-{rank}.json").read_text()) for chosen in ("false", "true"))
    for state in (cold, warm):
        for name in OWN:
            del state[name]
        for name in OWN_VARIABLES:
            state["environment"].pop(name, None)
        for name in ("argv", "orig_argv", "command line"):
            state[name] = [word for word in state[name] if not word.startswith(("--run_dir", "--trainer.callbacks."))]
    assert warm == cold
    assert warm["threads of torch"][0] == 2
    assert warm["ranks"] == [rank, rank]
    assert warm["environment"]["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1", "Lightning sets it when it is imported"


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_ranks_that_are_forked_draw_numbers_of_their_own_until_they_are_seeded(ranks: dict[str, Path]) -> None:
    drawn = [tuple(json.loads(path.read_text())["drawn"]) for path in ranks["true"].glob("?-?.json")]
    assert len(drawn) == 4
    for numbers in zip(*drawn, strict=True):
        assert len(set(numbers)) == 4


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_a_standby_takes_little_memory_beside_what_workers_share_with_it(ranks: dict[str, Path]) -> None:
    for attempt in (0, 1):
        assert float((ranks["true"] / f"standby-{attempt}").read_text()) <= 150
    assert not list(ranks["false"].glob("standby-*"))
