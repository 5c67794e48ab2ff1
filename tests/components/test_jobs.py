"""Runs of any scheduler, looked at and ended by `python -m components.jobs`: one sentence for each problem."""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import pytest
from torchx.runner import Runner
from torchx.schedulers.api import AppDryRunInfo, DescribeAppResponse, ListAppResponse, Scheduler, Stream
from torchx.specs import AppDef, AppState, ReplicaStatus, Role, RoleStatus, runopts

from components import jobs
from k8s.scheduler import KubernetesJob
from pipeline.errors import UserError
from tests.support.api_server import ApiServer
from tests.support.k8s_parts import submit

pytest_plugins = ("tests.support.k8s_fixtures",)
pytestmark = pytest.mark.timeout(60)


class Board(Scheduler[Mapping[str, Any]]):
    """A scheduler whose runs are told to it."""

    def __init__(self) -> None:
        super().__init__("board", "torchx")
        self.runs: dict[str, DescribeAppResponse] = {}
        self.fails: BaseException | None = None
        self.followed: list[bool] = []

    def add(self, name: str, state: AppState, **more: Any) -> str:
        replicas = [ReplicaStatus(k, state, "train", hostname=f"host{k}") for k in range(2)]
        roles = [Role("train", image="", num_replicas=2), Role("evaluate", image="", num_replicas=1)]
        self.runs[name] = DescribeAppResponse(name, state, roles=roles, **more)
        self.runs[name].roles_statuses = [RoleStatus("train", replicas)]
        return f"board://torchx/{name}"

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        if self.fails:
            raise self.fails
        return self.runs.get(app_id)

    def list(self) -> list[ListAppResponse]:
        if self.fails:
            raise self.fails
        return [ListAppResponse(name, run.state) for name, run in self.runs.items()]

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        should_tail: bool = False,
        streams: Stream | None = None,
    ) -> Iterable[str]:
        self.followed.append(should_tail)
        if (role_name, k) == ("train", 1) and self.runs[app_id].state == AppState.UNKNOWN:
            raise ConnectionError("the log server is away")
        return [f"{role_name} says {k}\n", "bye\n"]

    def _cancel_existing(self, app_id: str) -> None:
        self.runs[app_id].state = AppState.CANCELLED

    def _submit_dryrun(self, app: AppDef, cfg: Mapping[str, Any]) -> AppDryRunInfo[Any]:
        raise NotImplementedError

    def schedule(self, dryrun_info: AppDryRunInfo[Any]) -> str:
        raise NotImplementedError

    def _run_opts(self) -> runopts:
        return runopts()


class Ended(NamedTuple):
    status: int
    out: list[str]
    err: list[str]


Command = Callable[..., Ended]


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.fixture
def command(board: Board, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`python -m components.jobs <arguments>` in this process, with two schedulers."""
    factories: dict[str, Any] = {"board": lambda *_, **__: board, "kubernetes_job": KubernetesJob}
    monkeypatch.setattr(jobs, "get_runner", lambda: Runner("torchx", factories))
    monkeypatch.setattr(jobs, "_USUAL", ("kubernetes_job", "board", "not_installed"))

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        try:
            status = jobs.main(arguments)
        except SystemExit as ended:
            status = int(ended.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Ended(status, out.splitlines(), err.splitlines())

    return run


STATES: list[tuple[AppState, dict[str, Any], int, str]] = [
    (AppState.PENDING, {"msg": "it is in the queue"}, 0, ": PENDING: it is in the queue"),
    (AppState.RUNNING, {"num_restarts": 3}, 0, ": RUNNING, restarted 3 times"),
    (AppState.SUCCEEDED, {}, 0, ": SUCCEEDED with status 0"),
    (AppState.FAILED, {"structured_error_msg": '{"message": {"message": "x", "errorCode": 2}}'}, 2, " with status 2"),
    (
        AppState.FAILED,
        {"structured_error_msg": '{"message": {"message": "x", "errorCode": 75}}'},
        75,
        " with status 75",
    ),
    (AppState.FAILED, {"msg": "out of memory"}, 1, ": FAILED with status 1: out of memory"),
    (AppState.CANCELLED, {}, 130, ": CANCELLED with status 130"),
]


@pytest.mark.parametrize(("state", "more", "status", "said"), STATES)
def test_status_ends_as_the_run_has_ended(
    board: Board, command: Command, state: AppState, more: dict[str, Any], status: int, said: str
) -> None:
    handle = board.add("one", state, **more)
    ended = command("status", handle)
    assert (ended.status, ended.err) == (status, [])
    assert ended.out[0].startswith(handle)
    assert ended.out[0].endswith(said)
    assert ended.out[1:] == [f"  train/0 {state.name} host0", f"  train/1 {state.name} host1"]
    (line,) = command("status", "-s", "board", "one", "--json").out
    found = json.loads(line)
    over = state in (AppState.SUCCEEDED, AppState.FAILED, AppState.CANCELLED)
    assert (found["handle"], found["state"], found["status"]) == (handle, state.name, status if over else None)
    assert found["replicas"][1] == {"role": "train", "replica": 1, "state": state.name, "host": "host1"}


def test_list_shows_the_runs_of_all_schedulers_that_answer(
    board: Board, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    board.add("one", AppState.RUNNING)
    board.add("two", AppState.FAILED)
    ended = command("list")
    assert (ended.status, ended.out) == (0, ["RUNNING    board://torchx/one", "FAILED     board://torchx/two"])
    (note,) = ended.err
    assert note.startswith("kubernetes_job: no cluster is configured")
    (line,) = command("list", "-s", "board", "--json").out
    assert json.loads(line) == [
        {"handle": "board://torchx/one", "state": "RUNNING"},
        {"handle": "board://torchx/two", "state": "FAILED"},
    ]
    ended = command("list", "-s", "kubernetes_job")
    assert (ended.status, ended.out, len(ended.err)) == (2, [], 1)
    assert ended.err[0].startswith("error: no cluster is configured")


def test_logs_have_the_prefixes_of_the_launcher(board: Board, command: Command) -> None:
    handle = board.add("one", AppState.RUNNING)
    every = ["train says 0", "bye", "[train 1] train says 1", "[train 1] bye", "evaluate says 0", "bye"]
    assert command("logs", handle) == Ended(0, every, [])
    assert command("logs", f"{handle}/train/1") == Ended(0, every[2:4], [])
    assert board.followed == [False] * 4
    followed = command("logs", "--follow", f"{handle}/evaluate")
    assert (followed.out, board.followed[4:]) == (["evaluate says 0", "bye"], [True])
    lines = [json.loads(line) for line in command("logs", f"{handle}/train/1", "--json").out]
    assert lines[0] == {"role": "train", "replica": 1, "line": "train says 1"}
    ended = command("logs", f"{handle}/train/7")
    assert (ended.status, ended.err) == (2, ["error: train/7: this run has train/0, train/1, evaluate/0"])


def test_a_log_that_is_lost_ends_with_a_sentence_after_those_of_the_others(board: Board, command: Command) -> None:
    ended = command("logs", board.add("one", AppState.UNKNOWN))
    assert (ended.status, ended.err) == (1, ["error: ConnectionError: the log server is away"])
    assert ended.out == ["train says 0", "bye", "evaluate says 0", "bye"]


def test_cancel_ends_a_run_once(board: Board, command: Command) -> None:
    handle = board.add("one", AppState.RUNNING)
    assert command("cancel", handle) == Ended(0, [f"{handle} cancelled; its processes save and end"], [])
    assert board.runs["one"].state == AppState.CANCELLED
    assert command("cancel", handle) == Ended(0, [f"{handle} has ended already: CANCELLED"], [])


@pytest.mark.parametrize("arguments", [("status",), ("logs",), ("logs", "--follow"), ("cancel",)], ids=" ".join)
def test_a_run_that_is_not_there_is_said_at_once(command: Command, arguments: tuple[str, ...]) -> None:
    before = time.monotonic()
    ended = command(*arguments, "board://torchx/nobody")
    shows = "`python -m components.jobs list -s board` shows those that are there"
    assert ended.err == [f"error: board has no run 'nobody', or it has been deleted: {shows}"]
    assert (ended.status, ended.out) == (2, [])
    assert time.monotonic() - before < 30


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("one",), "run='one' must be SCHEDULER://SESSION/ID, or an ID whose scheduler is named by -s SCHEDULER"),
        (("board://one",), "run='board://one' must be SCHEDULER://SESSION/ID"),
        (("-s", "slurm", "board://torchx/one"), "run='board://torchx/one' is not of scheduler='slurm': leave out -s"),
        (("boards://torchx/one",), "scheduler='boards' must be one of board, kubernetes_job; did you mean 'board'?"),
        (("-s", "kubernetes", "one"), "scheduler='kubernetes' must be one of board, kubernetes_job; did you mean"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused(command: Command, arguments: tuple[str, ...], said: str) -> None:
    ended = command("status", *arguments)
    assert (ended.status, len(ended.err)) == (2, 1)
    assert ended.err[0].startswith(f"error: {said}")


def test_a_flag_that_is_not_there_is_the_users_mistake(command: Command) -> None:
    assert command("status", "board://torchx/one", "--jsn").status == 2
    assert command().status == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("no Docker engine answers"), 2),
        (ModuleNotFoundError("No module named 'boto3'"), 2),
        (NotImplementedError("it has no list"), 2),
        (TimeoutError("no answer\nwithin 60 s"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
@pytest.mark.parametrize("arguments", [("list", "-s", "board"), ("status", "-s", "board", "one")], ids=" ".join)
def test_an_outage_is_told_from_a_mistake(
    board: Board, command: Command, arguments: tuple[str, ...], error: BaseException, status: int
) -> None:
    board.fails = error
    ended = command(*arguments)
    assert (ended.status, ended.out, len(ended.err)) == (status, [], int(status != 130))
    assert all(line.startswith("error: ") for line in ended.err)


def test_a_run_in_a_cluster_is_shown_followed_and_cancelled(
    api: ApiServer, scheduler: KubernetesJob, command: Command
) -> None:
    handle = f"kubernetes_job://torchx/{submit(scheduler)}"
    pods = [api.start_pod("one-train", index) for index in (0, 1)]
    for index, pod in enumerate(pods):
        api.say(pod, f"hello from {index}")
    assert command("list", "-s", "kubernetes_job").out == [f"RUNNING    {handle}"]
    assert command("status", handle).out[1:] == [f"  train/{index} RUNNING node-{index}" for index in (0, 1)]
    assert command("logs", f"{handle}/train/1").out == ["[train 1] hello from 1"]
    api.end_pod(pods[1], 2, message="epochs='many' must be a number")
    api.finish("one-train", "Failed", reason="PodFailurePolicy", message="exit code 2 matching FailJob rule at index 0")
    api.end_pod(pods[0], 75)
    ended = command("status", handle)
    assert ended.status == 2
    assert ": FAILED with status 2" in ended.out[0]
    assert sorted(command("logs", "--follow", handle).out) == ["[train 1] hello from 1", "hello from 0"]
    assert command("cancel", handle).out == [f"{handle} has ended already: FAILED"]


@pytest.mark.parametrize("arguments", [("status",), ("logs", "--follow"), ("cancel",), ("list",)], ids=" ".join)
def test_what_a_cluster_refuses_is_a_sentence(
    api: ApiServer, scheduler: KubernetesJob, command: Command, arguments: tuple[str, ...]
) -> None:
    which = () if arguments == ("list",) else (submit(scheduler),)
    api.allowed.discard(("batch", "jobs", "list"))
    ended = command(*arguments, "-s", "kubernetes_job", *which)
    assert (ended.status, len(ended.err)) == (2, 1)
    assert re.match(r"error: namespace 'default': you may not list jobs .*`list jobs` in this namespace", ended.err[0])


def test_a_run_that_is_in_no_cluster_is_said_at_once(api: ApiServer, command: Command) -> None:
    ended = command("logs", "--follow", "-s", "kubernetes_job", "team:nobody")
    assert ended.status == 2
    assert ended.err[0].startswith("error: kubernetes_job has no run 'team:nobody', or it has been deleted")
