"""Real parts for the tests: an S3 server, the app in this process, and ranks started by torchrun."""

import importlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

# Tests run side by side: two threads for each of them would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Agents of the tests start their workers from the fork server below, which costs nothing; tests of standbys set it.
os.environ.setdefault("PET_STANDBY", "false")

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from tests.support import forkserver
from tests.support.commands import ROOT, Ended


def pytest_configure(config: pytest.Config) -> None:
    """Start Python programs from a warm server, where tests run: not in the process that only hands them out."""
    if not config.getoption("numprocesses", None):
        forkserver.install()


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: much of the time a test waits for processes that wait for each other."""
    return min(4, (os.cpu_count() or 1) + 1)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests fetch never lands in the user's own cache."""
    os.environ["PIPELINE_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A bucket: on the real server that the environment names, else on moto's."""
    if "AWS_ENDPOINT_URL" in os.environ and "PIPELINE_TEST_S3_BUCKET" in os.environ:
        bucket = os.environ["PIPELINE_TEST_S3_BUCKET"]
        server = None
    else:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        os.environ.update(
            AWS_ENDPOINT_URL=f"http://{host}:{port}",
            AWS_ACCESS_KEY_ID="testing",
            AWS_SECRET_ACCESS_KEY="testing",
            AWS_DEFAULT_REGION="us-east-1",
        )
        bucket = "pipeline-tests"
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    if not fs.exists(bucket):
        fs.mkdir(bucket)
    yield f"s3://{bucket}"
    if server is not None:
        server.stop()


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh URL on each kind of storage."""
    unique = uuid.uuid4().hex[:12]
    if request.param == "folder":
        return str(tmp_path / "run")
    return f"{request.getfixturevalue('s3')}/{unique}/run"


@pytest.fixture
def other_storage() -> str:
    """A fresh URL on a storage of a protocol that nothing here treats in a way of its own."""
    importlib.import_module("tests.support.ram")
    return f"ram://{uuid.uuid4().hex[:12]}/run"


@pytest.fixture
def app(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """The app in this process: `python -m pipeline <arguments>`."""
    from pipeline.__main__ import main
    from pipeline.process.preemption import Preemption

    monkeypatch.chdir(ROOT)

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        try:
            with Preemption() as preemption:
                status = main([str(argument) for argument in arguments], preemption)
        except SystemExit as ended:
            status = int(ended.code or 0)
        captured = capsys.readouterr()
        return Ended(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What plain Lightning saved after two epochs, under another program."""
    import lightning.pytorch as pl

    from tests.support.models import Own, Regression

    folder = tmp_path_factory.mktemp("theirs")
    trainer = pl.Trainer(
        max_epochs=2, default_root_dir=folder, logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(Regression(), Own())
    trainer.save_checkpoint(folder / "theirs.ckpt")
    trainer.save_checkpoint(folder / "weights_only.ckpt", weights_only=True)
    return folder
