"""A lease is replaced only while it still is what was read, on each storage as well as it allows."""

import uuid
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from pipeline.errors import LeaseLost, UserError
from pipeline.run import storage
from pipeline.run.lease import Lease
from pipeline.run.lease_storage import LeaseFile
from pipeline.run.run_dir import LEASE, RunDir
from tests.support.runs import leave


def test_a_renewal_that_was_stopped_in_its_middle_does_not_write_over_a_newer_lease(
    shared: str, taken: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = taken(shared)
    first.held()
    second = taken(shared)
    before = RunDir(shared).read(LEASE)
    with monkeypatch.context() as patched:
        patched.setattr(LeaseFile, "_is_own", lambda self, token: True)  # asked before the stop, written after it
        first._storage.renew(b"stale", "stale")
    assert RunDir(shared).read(LEASE) == before
    second.held()
    with pytest.raises(LeaseLost):
        first.held()


@pytest.mark.parametrize("renewed", [False, True])
def test_a_renewal_whose_answer_is_lost_is_no_loss_of_the_lease(
    s3: str, taken: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch, renewed: bool
) -> None:
    lease, real, lost = taken(f"{s3}/{uuid.uuid4().hex[:12]}/run"), storage.replace, []
    if renewed:  # then its version is known
        lease.held()

    def repeated(*arguments: Any) -> str | None:
        lost.append(real(*arguments)) if not lost else None
        return real(*arguments)

    monkeypatch.setattr(storage, "replace", repeated)
    lease.held()
    assert lost[0] is not None, "it has succeeded before it was repeated"
    lease.held()


def test_a_store_that_ignores_conditions_is_named_and_compared_first(
    s3: str, taken: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{s3}/{uuid.uuid4().hex[:12]}/run"
    fs = RunDir(url).fs
    real = fs.pipe_file
    with monkeypatch.context() as patched:
        patched.setattr(fs, "pipe_file", lambda path, data, **condition: real(path, data))
        lease = taken(url, "a")
        assert "no conditional writes there: two writers that start at the same moment are not excluded" in caplog.text
        lease.held()
        with pytest.raises(UserError):
            taken(url, "b")
        second = taken(url, "a")
        with pytest.raises(LeaseLost):
            lease.held()
        second.held()


def test_any_other_storage_is_compared_first_and_its_one_writer_is_best_effort(
    other_storage: str, taken: Callable[..., Lease], caplog: pytest.LogCaptureFixture
) -> None:
    lease = taken(other_storage, "a")
    assert "no conditional writes there" in caplog.text
    with pytest.raises(UserError, match=r"has a writer already, launch 'a' \(attempt 1"):
        taken(other_storage, "b")
    lease.held()
    second = taken(other_storage, "a")
    second.held()
    with pytest.raises(LeaseLost, match="taken over by launch 'a'"):
        lease.held()
    second.release()
    assert RunDir(other_storage).read(LEASE) is None
    leave(other_storage, seconds=0, renewed="2020-01-01T00:00:00.000Z")
    assert taken(other_storage, "b").attempt == 7


def test_a_store_that_does_not_implement_conditions_is_compared_first(
    s3: str, taken: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{s3}/{uuid.uuid4().hex[:12]}/run"
    fs = RunDir(url).fs
    real = fs.pipe_file

    class NotImplementedThere(Exception):
        response: ClassVar[dict[str, Any]] = {"ResponseMetadata": {"HTTPStatusCode": 501}}

    def refuse(path: str, data: bytes, **condition: Any) -> Any:
        if condition:
            raise OSError("not implemented") from NotImplementedThere()
        return real(path, data)

    monkeypatch.setattr(fs, "pipe_file", refuse)
    lease = taken(url, "a")
    lease.held()
    with pytest.raises(UserError):
        taken(url, "b")
    second = taken(url, "a")
    with pytest.raises(LeaseLost):
        lease.held()
    second.held()
