"""Real parts for the tests: an S3 server, the app in this process, and ranks started by torchrun."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Tests run side by side: two threads for each of them would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import fsspec
import pytest
from moto.server import ThreadedMotoServer

ROOT = Path(__file__).parent.parent
DIGITS = "pipeline/configs/digits.yaml"
QUICK = ("--trainer.max_epochs=2", "--checkpoints.every_n_epochs=1", "--trainer.enable_model_summary=false")


@dataclass
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


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


@pytest.fixture(params=["folder", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh URL on each kind of storage."""
    unique = uuid.uuid4().hex[:12]
    if request.param == "folder":
        return str(tmp_path / "run")
    if request.param == "memory":
        return f"memory://{unique}/run"
    return f"{request.getfixturevalue('s3')}/{unique}/run"


@pytest.fixture
def app(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """The app in this process: `python -m pipeline <arguments>`."""
    from pipeline.cli import main
    from pipeline.preemption import Preemption

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


@contextmanager
def heeding_ctrl_c() -> Iterator[None]:
    """Start processes that heed SIGINT, which a shell's background jobs, and all that they start, ignore."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def command(*arguments: object, env: dict[str, str] | None = None, timeout: float = 90, cwd: Path = ROOT) -> Ended:
    """Any command, to its end, within a limit; its process group dies with it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of the `make test` that runs this
        environment.pop(name, None)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    process = subprocess.Popen(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        raise AssertionError(f"not ended after {timeout} s:\n{out}\n{err}") from None
    return Ended(process.returncode, out, err)


def torchrun(ranks: int, *arguments: object, env: dict[str, str] | None = None, timeout: float = 90) -> Ended:
    """A program on `ranks` gloo processes of this machine."""
    return command(
        *(sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
        f"--nproc-per-node={ranks}",
        *arguments,
        env=env,
        timeout=timeout,
    )
