"""One writer per run, on every storage that processes share: real processes race, stop, die and come back."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LeaseLost, UserError
from pipeline.run import lease as module
from pipeline.run.lease import Lease
from pipeline.run.run_dir import LEASE, RunDir
from tests.support.commands import ROOT
from tests.support.runs import leave

WORKER = """
import json, sys, time
from pipeline.errors import UserError
from pipeline.run.lease import Lease
from pipeline.errors import LeaseLost
from pipeline.run.run_dir import RunDir
print("ready", flush=True)
lease = None
for line in sys.stdin:
    do = json.loads(line)
    try:
        if "take" in do:
            run = RunDir(do["take"])
            time.sleep(max(0, do.get("at", 0) - time.time()))
            lease = Lease.take(run, do["launch"], do.get("seconds", 60))
            answer = {"attempt": lease.attempt}
        elif "held" in do:
            answer = {"held": lease.held() is None}
        else:
            answer = {"released": lease.release() is None}
    except (UserError, LeaseLost) as error:
        answer = {type(error).__name__: str(error)}
    print(json.dumps(answer), flush=True)
"""


class Worker:
    """Another process that takes leases when it is told to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, **what: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def ask(self, **what: Any) -> dict[str, Any]:
        self.tell(**what)
        return self.hear()


@pytest.fixture(scope="module")
def workers(s3: str) -> Iterator[list[Worker]]:
    found = [Worker() for _ in range(3)]
    for worker in found:
        assert worker.process.stdout is not None
        assert worker.process.stdout.readline() == "ready\n"
    yield found
    for worker in found:
        worker.process.kill()
        worker.process.wait()


def race(workers: list[Worker], url: str) -> list[dict[str, Any]]:
    """What the workers are told when all of them start at once."""
    at = time.time() + 0.05
    for number, worker in enumerate(workers):
        worker.tell(take=url, launch=f"launch-{number}", at=at)
    return [worker.hear() for worker in workers]


def test_of_several_that_start_at_once_one_writes_and_the_others_are_told_who(
    workers: list[Worker], shared: str
) -> None:
    for number in range(8 if shared.startswith("s3") else 25):
        url = f"{shared}-{number}"
        answers = race(workers, url)
        winners = [at for at, answer in enumerate(answers) if answer == {"attempt": 1}]
        assert len(winners) == 1, answers
        for at, answer in enumerate(answers):
            if at not in winners:
                assert f"has a writer already, launch 'launch-{winners[0]}' (attempt 1, process " in answer["UserError"]
                assert " s ago)" in answer["UserError"]
        assert workers[winners[0]].ask(held=1) == {"held": True}
        assert workers[winners[0]].ask(release=1) == {"released": True}
        assert RunDir(url).read(LEASE) is None


def test_an_expired_lease_is_taken_over_by_exactly_one_of_several(workers: list[Worker], shared: str) -> None:
    for number in range(8 if shared.startswith("s3") else 25):
        url = f"{shared}-{number}"
        leave(url, seconds=0)
        answers = race(workers, url)
        assert [answer for answer in answers if answer == {"attempt": 7}] == [{"attempt": 7}], answers
        winner = workers[answers.index({"attempt": 7})]
        assert sum("UserError" in answer for answer in answers) == len(workers) - 1
        assert winner.ask(held=1) == {"held": True}
        winner.ask(release=1)


def test_who_was_stopped_until_another_took_over_never_writes_again(
    workers: list[Worker], shared: str, taken: Callable[..., Lease]
) -> None:
    worker, run = workers[0], RunDir(shared)
    assert worker.ask(take=shared, launch="stopped", seconds=1.5) == {"attempt": 1}
    os.kill(worker.process.pid, signal.SIGSTOP)
    try:
        lease, until = None, time.monotonic() + 20
        while lease is None:
            try:
                lease = taken(shared)
            except UserError:
                assert time.monotonic() < until
                time.sleep(0.1)
        assert lease.attempt == 2
        before = run.read(LEASE)
    finally:
        os.kill(worker.process.pid, signal.SIGCONT)
    time.sleep(0.5)  # its thread renews at once
    assert "taken over by launch 'here' (attempt 2" in worker.ask(held=1)["LeaseLost"]
    assert worker.ask(release=1) == {"released": True}
    assert run.read(LEASE) == before
    lease.held()


def test_who_was_stopped_until_another_had_finished_is_no_writer_again(
    shared: str, taken: Callable[..., Lease]
) -> None:
    first = taken(shared)
    taken(shared).release()
    with pytest.raises(LeaseLost, match="is gone"):
        first.held()
    assert RunDir(shared).read(LEASE) is None


def test_the_same_launch_takes_over_at_once_and_another_does_not(storage: str, taken: Callable[..., Lease]) -> None:
    first = taken(storage, "a")
    with pytest.raises(UserError, match=r"launch 'a' \(attempt 1, process \d+ on .*, renewed \d+ s ago\)"):
        taken(storage, "b")
    first.held()
    second = taken(storage, "a")
    assert (first.attempt, second.attempt) == (1, 2)
    with pytest.raises(LeaseLost):
        first.held()
    first.release()
    second.held()
    second.release()
    taken(storage, "b").held()


def test_a_lease_that_is_renewed_does_not_expire(storage: str, taken: Callable[..., Lease]) -> None:
    seconds = 3 if storage.startswith("s3") else 2
    lease = taken(storage, "a", seconds)
    until = time.monotonic() + 1.4 * seconds
    while time.monotonic() < until:
        with pytest.raises(UserError):
            taken(storage, "b")
        time.sleep(0.3)
    lease.held()


def test_threads_of_one_process_do_not_both_take_it(storage: str, taken: Callable[..., Lease]) -> None:
    url, won = storage, []
    start = threading.Barrier(4)

    def take(number: int) -> None:
        start.wait()
        with suppress(UserError):
            won.append(taken(url, f"launch-{number}"))

    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_after_kill_9_the_next_start_on_the_same_host_need_not_wait(shared: str, taken: Callable[..., Lease]) -> None:
    worker = Worker()
    assert worker.process.stdout is not None
    worker.process.stdout.readline()
    assert worker.ask(take=shared, launch="killed") == {"attempt": 1}
    with pytest.raises(UserError):
        taken(shared)
    worker.process.kill()
    until = time.monotonic() + 20
    while _state(worker.process.pid) != "Z":  # its parent has not looked yet
        assert time.monotonic() < until
        time.sleep(0.01)
    assert taken(shared).attempt == 2
    worker.process.wait()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"space": "pid:[1]"}, {"boot": "another"}])
def test_the_lease_of_a_node_that_may_have_vanished_is_waited_for_until_it_expires(
    tmp_path: Path, taken: Callable[..., Lease], change: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    url, here = str(tmp_path), module._process(os.getpid())
    assert here is not None
    dead = {"host": os.uname().nodename, "pid": 2**22 + 1, "process": here}
    foreign = {**dead, "host": change.get("host", dead["host"]), "process": {**here, **change}}
    leave(url, **foreign, seconds=1.5)
    began = time.monotonic()
    assert taken(url).attempt == 7
    assert time.monotonic() - began > 1.0
    assert "waiting up to " in caplog.text
    assert "for the lease of launch 'gone' (attempt 6, " in caplog.text
    leave(url, **dead)
    assert taken(url).attempt == 7


def test_a_number_that_another_process_has_by_now_is_not_its_holder(
    tmp_path: Path, taken: Callable[..., Lease]
) -> None:
    here = module._process(os.getpid())
    assert here is not None
    leave(str(tmp_path), host=os.uname().nodename, pid=os.getpid(), process={**here, "started": "1"})
    assert taken(str(tmp_path)).attempt == 7


def test_a_foreign_lease_that_is_renewed_while_another_launch_waits_is_refused(storage: str, taken: Any) -> None:
    leave(storage, seconds=4, renewals=1)
    renewal = threading.Timer(1.2, leave, [storage], {"seconds": 4, "renewals": 2})
    renewal.start()
    with pytest.raises(UserError, match="has a writer already, launch 'gone'"):
        taken(storage)
    renewal.join()


@pytest.mark.parametrize(
    "found",
    [
        b"",
        b'{"schema": 1, "att',
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"attempt": "x", "seconds": "y", "pid": "z", "renewed": 3, "host": [], "process": {}, "launch": {}}',
        b'{"attempt": null, "seconds": -1, "pid": null, "renewed": "yesterday"}',
        b'{"seconds": 1e300, "attempt": true}',
    ],
)
def test_a_damaged_lease_ages_and_is_taken_over(
    storage: str, taken: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch, found: bytes
) -> None:
    monkeypatch.setattr("pipeline.run.lease_storage.EXPIRES", 1.0)
    RunDir(storage).write(LEASE, found)
    assert taken(storage).attempt in (1, 2)


@pytest.mark.parametrize("found", [b"", b'{"renewed": "yesterday"}'])
def test_a_damaged_lease_ages_on_a_storage_that_tells_no_times(
    other_storage: str, taken: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch, found: bytes
) -> None:
    monkeypatch.setattr("pipeline.run.lease_storage.EXPIRES", 1.0)
    RunDir(other_storage).write(LEASE, found)
    assert taken(other_storage).attempt == 1


def test_a_renewal_that_says_less_is_whole_and_its_launch_takes_over_at_once(shared: str) -> None:
    progress: dict[str, Any] = {"reached_step": 100_000, "goodput": {"share": 0.1234, "behind_seconds": 3.029}}
    run = RunDir(shared)
    lease = Lease.take(run, "a", progress=lambda: progress)
    for number in (3, None, 12_345, 1):  # shorter, longer and shorter again
        progress = {"reached_step": number}
        lease.held()
        found = run.read_json(LEASE)
        assert found is not None, "it is no JSON"
        assert (found["launch"], found["reached_step"]) == ("a", number)
    with pytest.raises(UserError, match=r"launch 'a' \(attempt 1, "):
        Lease.take(run, "b")
    second = Lease.take(run, "a")
    assert second.attempt == 2
    assert second.before is not None
    assert second.before["reached_step"] == 1
    lease.release()
    second.release()
    assert run.read(LEASE) is None, "it is released"


def test_a_new_attempt_has_a_higher_number_than_all_before(storage: str, taken: Callable[..., Lease]) -> None:
    RunDir(storage).write_json(RunDir.attempt(11), {})
    assert taken(storage).attempt == 12


def test_while_the_storage_is_away_training_goes_on_and_a_commit_waits_for_certainty(
    tmp_path: Path, taken: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lease = taken(str(tmp_path), seconds=3)

    def away(data: bytes, token: str) -> bool:
        raise OSError("no route to host")

    with monkeypatch.context() as patched:
        patched.setattr(lease._storage, "renew", away)
        lease.held()  # nobody can have taken over yet
        until = time.monotonic() + 20
        while lease._renewals < 3:  # this one and two of its thread
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.1)
        assert caplog.text.count("cannot be renewed now: OSError: no route to host") == 1
        patched.setattr(lease, "_renewed", time.monotonic() - 3)
        with pytest.raises(OSError, match="no route to host"):
            lease.held()
    lease.held()


def test_a_release_that_fails_says_when_the_lease_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lease = Lease.take(RunDir(str(tmp_path)), "a")
    monkeypatch.setattr(lease._storage, "remove", lambda token: (_ for _ in ()).throw(OSError("away")))
    lease.release()
    assert "expires in 60 s: OSError: away" in caplog.text
    with pytest.raises(LeaseLost, match="has been released"):
        lease.held()
