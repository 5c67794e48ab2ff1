"""One node's agent: exit statuses, restarts, signals, and what is said of failures."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import pytest

from tests.support.commands import ROOT, Ended, command
from tests.support.forkserver import cold
from tests.support.meeting import Meeting
from tests.support.processes import blocks_or_catches

pytestmark = pytest.mark.timeout(120)
AGENT = (sys.executable, "-m", "pipeline.agent")

TABLE = """
import os, signal, sys
open(os.path.join(sys.argv[1], f"start-{os.environ['TORCHELASTIC_RESTART_COUNT']}"), "w").close()
if sys.argv[2].startswith("SIG"):
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
sys.exit(int(sys.argv[2]))
"""

RANKS = """
import os, signal, sys, time
folder, rank, roles = sys.argv[1], int(os.environ["RANK"]), sys.argv[2:]
def note(*_):
    open(os.path.join(folder, f"signalled-{rank}"), "a").write("x")
    if roles[rank] == "saves":
        time.sleep(0.5)
        os._exit(75)
    if roles[rank] == "leaves":
        os._exit(75)
if roles[rank] != "imports":
    for name in ("SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, name), note)
open(os.path.join(folder, f"pid-{rank}"), "w").write(str(os.getpid()))
if roles[rank].isdecimal():
    while len([name for name in os.listdir(folder) if name.startswith("pid-")]) < len(roles):
        time.sleep(0.02)
    sys.exit(int(roles[rank]))
if roles[rank] == "loses":
    from pipeline.process.error_file import write_report
    while len([name for name in os.listdir(folder) if name.startswith("pid-")]) < len(roles):
        time.sleep(0.02)
    time.sleep(0.5)
    path, message = os.environ["TORCHELASTIC_ERROR_FILE"], "RuntimeError: closed by peer"
    write_report(path, 1, message, "Traceback ...", lost_peer=True)
    sys.exit(1)
if roles[rank] == "later":
    time.sleep(1.5)
    open(os.path.join(folder, "later"), "w").write(os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    sys.exit(75)
while True:
    time.sleep(0.05)
"""


def ranks(folder: Path, *roles: str, options: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The command of an agent whose ranks play roles."""
    (folder / "ranks.py").write_text(RANKS)
    return (*AGENT, f"--nproc-per-node={len(roles)}", *options, str(folder / "ranks.py"), str(folder), *roles)


@contextmanager
def inheriting(hangup: signal.Handlers) -> Iterator[None]:
    """Give processes this handler of SIGHUP: who runs the tests may do so under nohup, which children inherit."""
    before = signal.signal(signal.SIGHUP, hangup)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def started(tmp_path: Path) -> Iterator["Running"]:
    running = Running(tmp_path)
    yield running
    running.end()


class Running:
    """An agent in the background, whose ranks play roles."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, *roles: str, options: tuple[str, ...] = (), hangup: signal.Handlers = signal.SIG_DFL) -> None:
        with inheriting(hangup):
            self.agent = subprocess.Popen(
                ranks(self.folder, *roles, options=options),
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        deadline = time.monotonic() + 50
        while len(self.pids()) < len(roles):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def pids(self) -> list[int]:
        return [int(text) for path in self.folder.glob("pid-*") if (text := path.read_text())]

    def pid(self, rank: int) -> int:
        return int((self.folder / f"pid-{rank}").read_text())

    def signalled(self, rank: int) -> int:
        path = self.folder / f"signalled-{rank}"
        return len(path.read_text()) if path.exists() else 0

    def ended(self, seconds: float = 50) -> Ended:
        _, err = self.agent.communicate(timeout=seconds)
        return Ended(self.agent.returncode, "", err)

    def end(self) -> None:
        if self.agent.poll() is None:
            self.agent.kill()
            self.agent.communicate()


@pytest.mark.parametrize(
    ("how", "status", "starts", "said"),
    [
        ("0", 0, 1, ""),
        ("2", 2, 1, ""),
        ("75", 75, 1, "status 75 (preempted)"),
        ("1", 1, 3, "rank 0 on {host} exited with status 1"),
        ("7", 7, 3, "rank 0 on {host} exited with status 7"),
        ("SIGKILL", 137, 3, "rank 0 on {host} killed by SIGKILL"),
    ],
)
def test_the_agent_ends_as_its_process_did_and_restarts_crashes_alone(
    tmp_path: Path, how: str, status: int, starts: int, said: str
) -> None:
    (tmp_path / "table.py").write_text(TABLE)
    ended = command(*AGENT, "--max-restarts=2", tmp_path / "table.py", tmp_path, how)
    assert ended.status == status
    assert len(list(tmp_path.glob("start-*"))) == starts
    lines = ended.err.splitlines()
    said = said.format(host=os.uname().nodename)
    if starts == 1:
        assert len(lines) == bool(said), ended.err
        assert said in ended.err
    else:
        assert lines == [f"{said}: restart 1 of 2", f"{said}: restart 2 of 2", said]


def test_after_a_75_the_others_may_take_their_time_and_are_not_signalled(started: Running) -> None:
    started.start("75", "later", options=("--shutdown-timeout=17", "--max-restarts=2"))
    assert started.ended().status == 75
    assert (started.folder / "later").read_text() == "17", "the workers know the grace"
    assert started.signalled(1) == 0


def test_after_a_75_who_does_not_end_is_killed_after_the_grace(started: Running) -> None:
    began = time.monotonic()
    started.start("75", "stays", options=("--shutdown-timeout=1",))
    assert started.ended().status == 75
    assert time.monotonic() - began < 15


def test_who_loses_a_peer_that_ended_with_75_has_not_crashed(started: Running) -> None:
    started.start("75", "loses", options=("--max-restarts=2",))
    assert started.ended().status == 75


def test_a_lost_peer_is_a_line_without_a_traceback(started: Running) -> None:
    started.start("loses", options=("--max-restarts=0",))
    ended = started.ended()
    assert ended.status == 1
    assert ended.err == f"rank 0 on {os.uname().nodename} exited with status 1 (RuntimeError: closed by peer)\n"


def test_what_nohup_has_started_outlives_its_terminal(started: Running) -> None:
    started.start("leaves", hangup=signal.SIG_IGN)
    started.agent.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert started.agent.poll() is None
    started.agent.send_signal(signal.SIGTERM)
    assert started.ended().status == 75


def test_after_a_crash_the_others_are_asked_to_end_and_the_first_one_counts(started: Running) -> None:
    started.start("7", "saves", options=("--max-restarts=0",))
    ended = started.ended()
    assert ended.status == 7
    assert started.signalled(1) == 1
    assert ended.err == f"rank 0 on {os.uname().nodename} exited with status 7\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_is_passed_on_once_as_sigterm_and_the_agent_ends_with_75(started: Running, number: int) -> None:
    started.start("saves", "leaves", options=("--max-restarts=2",))
    started.agent.send_signal(number)
    ended = started.ended()
    assert ended.status == 75
    assert (started.signalled(0), started.signalled(1)) == (1, 1)
    name = signal.Signals(number).name
    assert ended.err == f"node {os.uname().nodename} received {name}\n"


def test_a_second_signal_is_passed_on_too_and_leaves_five_seconds(started: Running) -> None:
    started.start("stays", options=("--shutdown-timeout=60",))
    started.agent.send_signal(signal.SIGTERM)
    time.sleep(1)
    began = time.monotonic()
    started.agent.send_signal(signal.SIGTERM)
    assert started.ended().status == 75
    assert 4 < time.monotonic() - began < 30, "not the 60 seconds that it was given"
    assert started.signalled(0) == 2


def test_who_is_signalled_before_it_has_a_handler_is_preempted_and_the_others_are_asked_at_once(
    started: Running,
) -> None:
    started.start("imports", "leaves", "stays", options=("--max-restarts=2", "--shutdown-timeout=40"))
    began = time.monotonic()
    os.kill(started.pid(0), signal.SIGTERM)
    while not (started.signalled(1) and started.signalled(2)):
        assert time.monotonic() - began < 20, "at once, not after the grace of 40 seconds"
        time.sleep(0.02)
    os.kill(started.pid(2), signal.SIGKILL)
    ended = started.ended()
    assert ended.status == 75, ended.err
    assert "restart" not in ended.err


def test_signals_of_all_kinds_without_end_leave_it_at_75(started: Running) -> None:
    started.start("saves", "imports", options=("--max-restarts=2",))
    kinds = cycle((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP))
    while started.agent.poll() is None:
        started.agent.send_signal(next(kinds))
        time.sleep(0.01)
    assert started.ended().status == 75


def test_an_agent_that_is_signalled_while_it_starts_never_dies_of_it(tmp_path: Path) -> None:
    with cold():
        agent = subprocess.Popen([*AGENT, str(tmp_path / "never.py")], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not blocks_or_catches(agent.pid, signal.SIGTERM):
        assert agent.poll() is None
    while agent.poll() is None:
        agent.send_signal(signal.SIGTERM)
        time.sleep(0.002)
    assert agent.returncode == 75
    assert agent.communicate()[1] == f"node {os.uname().nodename} received SIGTERM before its workers were started\n"


@pytest.mark.parametrize(("role", "number", "status"), [("leaves", signal.SIGHUP, 75), ("7", None, 7)])
def test_the_status_is_told_also_where_the_terminal_is_closed(
    tmp_path: Path, role: str, number: signal.Signals | None, status: int
) -> None:
    ours, theirs = pty.openpty()
    line = ranks(tmp_path, "stays", role, options=("--max-restarts=1", "--shutdown-timeout=1"))
    with inheriting(signal.SIG_DFL):
        agent = subprocess.Popen(line, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.close(ours)
    while number is not None and len(list(tmp_path.glob("pid-*"))) < 2:
        assert agent.poll() is None
        time.sleep(0.05)
    if number is not None:
        agent.send_signal(number)
    assert agent.wait(30) == status


def test_ctrl_c_is_passed_on_and_the_agent_ends_with_130(started: Running) -> None:
    started.start("leaves")
    started.agent.send_signal(signal.SIGINT)
    assert started.ended().status == 130
    assert started.signalled(0) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_workers_die_with_an_agent_that_is_killed(started: Running) -> None:
    started.start("stays", "stays")
    started.agent.kill()
    started.agent.wait()
    deadline = time.monotonic() + 5
    while any(map(alive, started.pids())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs, and is no leftover entry of one that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_name_that_does_not_resolve_is_said_and_ends_with_1(tmp_path: Path) -> None:
    ended = command(
        *(*AGENT, "--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=nowhere.invalid:29500"),
        *("--rdzv-conf=join_timeout=6", tmp_path / "never.py"),
    )
    assert ended.status == 1
    assert ended.err.splitlines() == [
        "waiting for the name 'nowhere.invalid' of node 0 to resolve",
        "the name 'nowhere.invalid' of node 0 did not resolve within 6 s: is the headless service there?",
    ]


def test_torchruns_own_options_go_on_working(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import os; print('rank', os.environ['RANK'], os.environ['LOCAL_WORLD_SIZE'])")
    ended = command(
        *(*AGENT, "--standalone", "--nproc_per_node=2", "--log-dir", tmp_path / "logs", "--redirects=3", "--tee=0:3"),
        tmp_path / "program.py",
    )
    assert ended.status == 0, ended.text
    assert ended.out == "[default0]:rank 0 2\n"
    files = sorted((tmp_path / "logs").rglob("stdout.log"))
    assert [file.read_text() for file in files] == ["rank 0 2\n", "rank 1 2\n"]


@pytest.mark.parametrize("wrong", ["--rdzv-conf=join_timeout=soon", "--rdzv-endpoint=node:port", "--nnodes=2:1"])
def test_torchruns_options_that_say_nothing_are_status_2(tmp_path: Path, wrong: str) -> None:
    ended = command(*AGENT, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", wrong, tmp_path / "never.py")
    assert ended.status == 2, ended.err
    assert len(ended.err.splitlines()) == 1


def test_another_rendezvous_is_refused_with_status_2(tmp_path: Path) -> None:
    ended = command(*AGENT, "--nnodes=2", "--rdzv-backend=etcd", tmp_path / "never.py")
    assert ended.status == 2
    assert ended.err.startswith("error: rdzv_backend='etcd'")


def test_the_agent_writes_how_it_ended_where_its_own_launcher_looks(tmp_path: Path) -> None:
    (tmp_path / "table.py").write_text(TABLE)
    file = tmp_path / "error.json"
    command(
        *AGENT, "--max-restarts=0", tmp_path / "table.py", tmp_path, "7", env={"TORCHELASTIC_ERROR_FILE": str(file)}
    )
    message = json.loads(file.read_text())["message"]
    assert message["errorCode"] == 7
    assert message["message"] == f"rank 0 on {os.uname().nodename} exited with status 7"


@pytest.mark.timeout(90)
def test_a_users_mistake_is_one_line_through_the_agent_and_the_driver(tmp_path: Path) -> None:
    arguments = ("--nodes", "2", "--run_dir", tmp_path / "run", "--", "--trainer.max_epoch=3")
    ended = command(sys.executable, "-m", "components.launch", *arguments)
    assert ended.status == 2
    assert len(ended.text.strip().splitlines()) == 2, ended.text
    assert "did you mean 'trainer.max_epochs'?" in ended.out
    assert "train: failed with status 2" in ended.err


def test_what_the_store_is_asked_for_by_each_node_does_not_grow_with_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    meeting = Meeting(12)
    meeting.join()
    # torch's own: one node reads all roles, and the others their ranks. Ours: one node reads what each wants.
    assert meeting.total["keys read by multi_get"] <= 4 * 12
