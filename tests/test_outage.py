"""A storage that is away: a start waits for it, and logs that cannot be written are no reason to stop training."""

import errno
import os
import re
import shutil
import signal
import threading
import time
import urllib.error
import uuid
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import botocore.exceptions as boto
import fsspec
import pytest
import requests
import torch
import urllib3

from pipeline.checkpoint.saver import SaveFailed
from pipeline.commands.drill.proxy import Proxy
from pipeline.errors import chain
from pipeline.process.error_file import is_lost_peer
from pipeline.process.patience import Patience, patience
from pipeline.run.run_dir import RunDir
from pipeline.run.storage_errors import is_away
from tests.support.commands import Ended
from tests.support.flaky import Flaky
from tests.support.models import Rows
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
    ended = app(*FIT, "--run_dir", "s3://away/run", "--away_limit=4")
    assert ended.status == 1, ended.err
    assert "run_dir='s3://away/run' does not answer, retrying for another " in ended.err
    assert (
        "error: run_dir='s3://away/run' has not answered for 4 s (--away_limit): EndpointConnectionError" in ended.err
    )
    assert "Traceback" not in ended.err


ERRORS: tuple[Callable[[], Exception], ...] = (
    lambda: ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    lambda: TimeoutError("no answer"),
    lambda: boto.ClientError(
        {"ResponseMetadata": {"HTTPStatusCode": 503}, "Error": {"Code": "SlowDown"}},  # type: ignore[arg-type]
        "GetObject",
    ),
    lambda: boto.EndpointConnectionError(endpoint_url="http://x"),
)
MORE = ("--trainer.max_epochs=3", "--checkpoints.storage_budget=0")
COMMANDS: dict[str, tuple[str, ...]] = {
    "a new run": (*FIT, "--checkpoints.storage_budget=0"),
    "a resume": (*FIT, *MORE),
    "a resume from a named checkpoint": (*FIT, *MORE, "--ckpt_path=flaky://store/run/checkpoints/step-00000014.ckpt"),
    "test": ("test", "--data.test=tests.support.models.Rows"),
    "validate": ("validate", "--data.val=tests.support.models.Rows"),
    "verify": ("verify",),
    "prune": ("prune", "--keep_last=1"),
    "explain_resume": ("explain_resume",),
}


@pytest.fixture
def trained(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on a storage whose requests may fail, and which is retried at once."""
    monkeypatch.setattr("pipeline.run.retry._FIRST_PAUSE", 0.001)
    monkeypatch.setattr("pipeline.checkpoint.saver._FIRST_PAUSE", 0.001)
    for limit in ("pipeline.run.attempts._AT_THE_END", "pipeline.training.logs.mirror._LIMIT"):
        monkeypatch.setattr(limit, 1.0)
    assert app(*FIT, "--run_dir", Flaky.reset(tmp_path / "trained")).status == 0
    return tmp_path / "trained"


SLOW = ("validate", "a resume from a named checkpoint")
"""Whose requests are nearly those of another command."""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_start_whose_every_request_fails_once_ends_as_if_none_had(app: App, trained: Path, name: str) -> None:
    for number, error in enumerate(ERRORS[:2]):
        folder = trained.with_name(f"{number}")
        if name != "a new run":
            shutil.copytree(trained, folder)
        run = Flaky.reset(folder, first=True, error=error)
        lasting = ["--checkpoints.storage_budget=60"] if COMMANDS[name][0] == "fit" else []
        ended = app(*COMMANDS[name], "--run_dir", run, *lasting)
        assert ended.status == 0, ended.text
        assert "Traceback" not in ended.text


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in COMMANDS]
)
def test_a_start_whose_storage_goes_away_at_any_request_is_a_crash_that_loses_nothing(
    app: App, trained: Path, name: str
) -> None:
    statuses, good = [], 0
    while not statuses or statuses[-1] != 0:
        folder = trained.with_name(f"{good}")
        if name != "a new run":
            shutil.copytree(trained, folder)
        kept = {} if name == "prune" else checkpoints(folder)
        run = Flaky.reset(folder, good=good, error=ERRORS[good % len(ERRORS)])
        try:
            ended = app(*COMMANDS[name], "--run_dir", run, "--away_limit=0")
        except SaveFailed:  # training had begun
            break
        assert ended.status in (0, 1), ended.text
        assert "Traceback" not in ended.text
        assert ended.status == 0 or "has not answered for 0 s (--away_limit)" in ended.err
        assert kept.items() <= checkpoints(folder).items()
        statuses.append(ended.status)
        good += 1
    assert len(statuses) > 5
    if statuses[-1] != 0:  # what is left by the last start that failed is in nobody's way
        Flaky.reset(trained.with_name(f"{good - 1}"))
        assert app(*COMMANDS[name], "--run_dir", run).status == 0


DATA_ERRORS: dict[str, Callable[[], Exception]] = {
    "socket": lambda: ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    "boto3": ERRORS[2],
    "urllib": lambda: urllib.error.HTTPError("https://host/data", 503, "Service Unavailable", Message(), None),
    "an error without words": TimeoutError,
    "requests": lambda: requests.exceptions.ConnectionError("Max retries exceeded"),
    "requests' answer": lambda: requests.exceptions.HTTPError("503 Server Error", response=answer(503)),
    "urllib3": lambda: urllib3.exceptions.ReadTimeoutError(
        urllib3.HTTPConnectionPool("host"), "/data", "Read timed out."
    ),
    "a library that wraps it": lambda: wrapped(RuntimeError("the dataset could not be read"), TimeoutError()),
}


def answer(status: int) -> requests.Response:
    made = requests.Response()
    made.status_code = status
    return made


def wrapped(outer: Exception, cause: Exception) -> Exception:
    outer.__cause__ = cause
    return outer


class Remote(Rows):
    """A dataset of the user's own, which reads its rows from somewhere in its constructor."""

    fails: ClassVar[list[Callable[[], Exception]]] = []

    def __init__(self, size: int = 101) -> None:
        torch.rand(3)  # a constructor that draws random numbers must not change the model's after a retry
        if self.fails:
            raise self.fails.pop()()
        super().__init__(size)


@pytest.mark.parametrize("name", DATA_ERRORS)
def test_data_whose_storage_is_away_for_a_moment_are_waited_for_and_train_the_same_model(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("pipeline.run.retry._FIRST_PAUSE", 0.001)
    fit = (*FIT, "--data.train=tests.test_outage.Remote", "--trainer.max_epochs=1")
    assert app(*fit, "--run_dir", tmp_path / "straight").status == 0
    monkeypatch.setattr(Remote, "fails", [DATA_ERRORS[name]] * 2)
    ended = app(*fit, "--run_dir", tmp_path / "waited")
    assert ended.status == 0, ended.text
    assert "what data, model or trainer read does not answer" in ended.err
    one, other = (torch.load(tmp_path / run / RunDir.checkpoint(7)) for run in ("straight", "waited"))
    assert all(torch.equal(one["state_dict"][key], other["state_dict"][key]) for key in one["state_dict"])


@pytest.mark.parametrize("command", ["fit", "explain_resume"])
def test_data_whose_storage_stays_away_are_a_crash(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    flags = (*FIT[1:], "--data.train=tests.test_outage.Remote", "--run_dir", tmp_path, "--away_limit=0")
    monkeypatch.setattr(Remote, "fails", [DATA_ERRORS["boto3"]])
    ended = app(command, *flags)
    assert ended.status == 1, ended.text
    assert "what data, model or trainer read has not answered for 0 s (--away_limit): ClientError" in ended.err
    assert "Traceback" not in ended.text


def test_a_configuration_whose_host_is_away_is_a_crash(app: App) -> None:
    ended = app("fit", "--config=http://127.0.0.1:9/fit.yaml", "--run_dir=x", "--away_limit=0")
    assert ended.status == 1, ended.text
    assert "Traceback" not in ended.text


def checkpoints(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a run's checkpoints and of their records, by name."""
    return {path.name: path.read_bytes() for path in folder.glob("store/run/checkpoints/*")}


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
        threading.Timer(1.0, proxy.restore).start()
        with patience(Patience(60)):
            assert run.steps() == {"ckpt": {}, "json": {}}


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_a_preemption_while_the_server_is_away_waits_for_its_last_step(
    s3: str, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, run = urlsplit(os.environ["AWS_ENDPOINT_URL"]), RunDir(f"{s3}/{uuid.uuid4().hex[:12]}/run")
    slowly = ("--model=tests.support.killable.Slowly", "--trainer.max_epochs=100", "--grace=120")
    with Proxy(str(server.hostname), server.port or 80) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        with fit_process(tmp_path, *slowly, run=run.url) as running:
            running.until("saved checkpoint step 7 ")
            proxy.cut()
            running.signalled(signal.SIGTERM)
            time.sleep(4)
            assert running.process.poll() is None, running.said
            assert "preempted at step" not in running.said
            proxy.restore()
            assert running.ended(100) == 75, running.said
        (said,) = re.findall(r"preempted at step (\d+)", running.said)
        assert max(run.steps()["json"]) == int(said)


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
