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
from datetime import timedelta
from email.message import Message
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import botocore.exceptions as boto
import fsspec
import pytest
import requests
import torch
import urllib3
from botocore.config import Config

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
from tests.support.s3_front import HANGS, FaultyFront, fronted

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
    "predict": ("predict", "--data.predict=tests.support.predicting.Numbers"),
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


IN_FULL = ("a resume", "test")
"""Which go through all their requests in each run of the tests; the others do in the slow ones."""


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
    "name", [name if name in IN_FULL else pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS]
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


FAULTS = ("reset", "503", "hang", "torn")
ON_S3 = ("a new run", "a resume", "test", "predict", "verify", "prune", "explain_resume")


@pytest.fixture
def impatient(s3: str, fresh: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder on S3 behind a server that fails requests, whose clients hardly retry by themselves."""
    server = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setitem(Config.OPTION_DEFAULTS, "read_timeout", HANGS)  # type: ignore[attr-defined]
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
    monkeypatch.setattr("pipeline.run.s3_client._TIMEOUT", timedelta(seconds=HANGS))
    monkeypatch.setattr("pipeline.run.s3_client._RETRIES", {"max_retries": 0, "retry_timeout": timedelta(seconds=1)})
    for pause in ("pipeline.run.retry._FIRST_PAUSE", "pipeline.checkpoint.saver._FIRST_PAUSE"):
        monkeypatch.setattr(pause, 0.001)
    for limit in ("pipeline.run.attempts._AT_THE_END", "pipeline.training.logs.mirror._LIMIT"):
        monkeypatch.setattr(limit, 1.0)
    FaultyFront.behind = server.netloc
    FaultyFront.plan(0)
    with fronted(FaultyFront) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{front.server_port}")
        yield f"{s3}/{uuid.uuid4().hex[:12]}"


def failed_at(app: App, folder: str, name: str, number: int, *more: str, **how: Any) -> tuple[Ended | None, bool]:
    """Run a command while a request fails; return how it ended, None where a save did, and whether one has failed.

    Nothing that was committed before may be lost.
    """
    run, trained = RunDir(f"{folder}/{uuid.uuid4().hex[:8]}/run"), RunDir(f"{folder}/trained")
    if name != "a new run":
        for path in run.fs.find(trained.path):
            run.fs.copy(path, path.replace(trained.path, run.path))
    arguments = [each.replace("flaky://store/run", run.url) for each in COMMANDS[name] if "storage_budget" not in each]
    FaultyFront.plan(number, **how)
    try:
        ended = app(*arguments, "--run_dir", run, *more)
    except SaveFailed:
        ended = None
    failed = FaultyFront.asked >= number
    FaultyFront.plan(0)
    if name not in ("a new run", "prune"):
        before, after = (each.steps()["ckpt"] for each in (trained, run))
        assert before.items() <= after.items()
        assert set(trained.steps()["json"]) <= set(run.steps()["json"])
    return ended, failed


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "every"),
    [("a resume", 23), *(pytest.param(name, 7, marks=pytest.mark.slow, id=f"{name}-more") for name in ON_S3)],
)
def test_a_start_of_which_any_request_to_s3_fails_once_ends_as_if_it_had_not(
    app: App, impatient: str, name: str, every: int
) -> None:
    assert app(*FIT, "--run_dir", f"{impatient}/trained").status == 0
    more = ["--checkpoints.storage_budget=60"] if COMMANDS[name][0] == "fit" else []
    for number in range(1, 1000, every):
        ended, failed = failed_at(app, impatient, name, number, *more, fault=FAULTS[number % len(FAULTS)])
        assert ended is not None
        assert ended.status == 0, (number, ended.text)
        assert "Traceback" not in ended.text
        if not failed:
            break
    assert number > 3


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "every"),
    [("a resume", 23), *(pytest.param(name, 7, marks=pytest.mark.slow, id=f"{name}-more") for name in ON_S3)],
)
def test_a_start_of_which_s3_goes_away_at_any_request_is_a_crash(
    app: App, impatient: str, name: str, every: int
) -> None:
    assert app(*FIT, "--run_dir", f"{impatient}/trained").status == 0
    more = ["--checkpoints.storage_budget=0"] if COMMANDS[name][0] == "fit" else []
    crashes = 0
    for number in range(1, 1000, every):
        fault = FAULTS[number % len(FAULTS)]
        ended, failed = failed_at(app, impatient, name, number, "--away_limit=0", *more, fault=fault, lasting=True)
        if ended is None or not failed:  # training had begun, or was over
            break
        assert ended.status in (0, 1), (number, fault, ended.text)
        assert "Traceback" not in ended.text
        assert ended.status == 0 or "has not answered for 0 s (--away_limit)" in ended.err
        crashes += ended.status
    assert crashes > 1


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


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data were there at once, trained by the first test that needs it."""
    return tmp_path_factory.mktemp("straight") / "run"


@pytest.mark.parametrize("name", DATA_ERRORS)
def test_data_whose_storage_is_away_for_a_moment_are_waited_for_and_train_the_same_model(
    app: App, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("pipeline.run.retry._FIRST_PAUSE", 0.001)
    fit = (*FIT, "--data.train=tests.test_outage.Remote", "--trainer.max_epochs=1")
    assert straight.exists() or app(*fit, "--run_dir", straight).status == 0
    monkeypatch.setattr(Remote, "fails", [DATA_ERRORS[name]] * 2)
    ended = app(*fit, "--run_dir", tmp_path / "waited")
    assert ended.status == 0, ended.text
    assert "what data, model or trainer read does not answer" in ended.err
    one, other = (torch.load(run / RunDir.checkpoint(7)) for run in (straight, tmp_path / "waited"))
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
