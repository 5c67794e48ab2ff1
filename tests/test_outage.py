"""A storage that is away: a start waits for it, and logs that cannot be written are no reason to stop training."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import pytest

from pipeline.commands.drill.proxy import Proxy
from pipeline.config import resume_point
from pipeline.errors import chain
from pipeline.process.error_file import is_lost_peer
from pipeline.run.run_dir import RunDir
from pipeline.run.storage_errors import is_away
from tests.support.commands import Ended
from tests.support.processes import fit_process
from tests.support.runs import FIT

App = Callable[..., Ended]


@pytest.fixture
def fresh() -> Iterator[None]:
    """No client that an earlier test has made, and none that is left."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 at a port where nobody listens."""
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.timeout(120)
def test_a_start_waits_for_a_storage_that_is_away_and_then_is_a_crash_not_a_users_mistake(
    app: App, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody(monkeypatch)
    monkeypatch.setattr(resume_point, "_AWAY_LIMIT", 4.0)
    ended = app(*FIT, "--run_dir", "s3://away/run")
    assert ended.status == 1, ended.err
    assert "does not answer, retrying in 1 s: EndpointConnectionError" in ended.err
    assert "error: run_dir='s3://away/run': its storage has not answered for 4 s" in ended.err
    assert "Traceback" not in ended.err


def test_what_an_answer_says_is_no_outage(s3: str, tmp_path: Path) -> None:
    for run in (RunDir("s3://no-such-bucket-here/run"), RunDir(str(tmp_path / "no" / "such"))):
        with pytest.raises((OSError, ValueError)) as caught:
            run.fs.info(f"{run.path}/x")
        assert not is_away(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory") as caught:
        RunDir(str(tmp_path / "file" / "run")).write("x", b"")
    assert not is_away(caught.value)


@pytest.mark.parametrize("error", [ConnectionResetError(), TimeoutError(), OSError(5, "I/O"), OSError(116, "stale")])
def test_what_a_network_says_is_one(error: Exception) -> None:
    outer = RuntimeError("while writing")
    outer.__cause__ = error
    assert is_away(outer)


def test_the_server_is_asked_again_until_it_is_back(s3: str, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    server = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    with Proxy(str(server.hostname), server.port or 80) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        run = RunDir(f"{s3}/back/run")
        proxy.cut()
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever a client makes of it
            run.steps()
        assert is_away(caught.value)
        proxy.restore()
        resume_point._wait_for_storage(run)


def test_a_chain_of_exceptions_that_ends_in_itself_is_walked_once() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first
    assert chain(first) == [first, second]
    assert not is_lost_peer(first)


@pytest.mark.timeout(120)
def test_where_logs_cannot_be_written_training_goes_on(tmp_path: Path) -> None:
    more = ("--model=tests.support.killable.Slowly", "--trainer.max_epochs=6", "--trainer.log_every_n_steps=1")
    with fit_process(tmp_path, *more) as running:
        running.until("saved checkpoint step 7 ")
        # The whole run directory goes away, as a network folder does, and comes back.
        running.run.rename(tmp_path / "away")
        running.run.write_text("in the way")
        time.sleep(2.5)
        running.run.unlink()
        (tmp_path / "away").rename(running.run)
        assert running.ended(60) == 0, running.said
        assert "Traceback" not in running.said
        assert max(RunDir(str(running.run)).steps()["json"]) == 42
