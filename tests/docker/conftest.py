"""Real containers: `make smoke-docker` has built the image, and runs these; `make test` needs no engine."""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
import pytest
from docker.errors import DockerException, NotFound
from docker.models.containers import Container
from torchx.schedulers.docker_scheduler import LABEL_APP_ID, NETWORK, ensure_network

from pipeline.commands.drill.proxy import Proxy
from tests.support.containers import IMAGE, LAUNCH, ONE_NODE
from tests.support.launched import Launched, killed_in_the_end


@pytest.fixture(scope="session")
def engine() -> docker.DockerClient:
    """The Docker engine of this machine."""
    try:
        client = docker.from_env()
        client.images.get(IMAGE)
    except DockerException as error:
        pytest.fail(f"these tests need a Docker engine that has {IMAGE}; `make smoke-docker` builds it: {error}")
    return client


@pytest.fixture(autouse=True)
def _swept(engine: docker.DockerClient) -> Iterator[None]:
    """No container of a test outlives it; one that the engine does not give up is named."""
    before = {one.id for one in engine.containers.list(all=True)}
    yield
    for one in engine.containers.list(all=True):
        if one.id not in before and (refused := _removed(one)):
            warnings.warn(f"the container {one.name} is left: {refused}", stacklevel=1)


def _removed(one: Container, tries: int = 10) -> DockerException | None:
    """Remove a container; return what the engine says each time, if it does not."""
    refused = None
    for _ in range(tries):
        try:
            one.remove(force=True, v=True)
        except NotFound:
            return None
        except DockerException as error:
            refused = error
            time.sleep(1)
        else:
            return None
    return refused


@pytest.fixture
def run_in(engine: docker.DockerClient) -> Callable[..., str]:
    """A command in the most restricted container: any user, only /tmp writable, no network."""

    def run(*command: str, image: str = IMAGE, **options: Any) -> str:
        hostile = {"user": "4242:4242", "read_only": True, "tmpfs": {"/tmp": ""}, "network_mode": "none"}
        return engine.containers.run(image, list(command), **{**hostile, "cap_drop": ["ALL"], **options}).decode()

    return run


@pytest.fixture
def bucket(engine: docker.DockerClient, s3: str) -> Iterator[tuple[str, str]]:
    """A bucket, and the address of its server as containers on TorchX's network see it."""
    ensure_network(engine)
    gateway = engine.networks.get(NETWORK).attrs["IPAM"]["Config"][0]["Gateway"]
    server = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    with Proxy(server.hostname or "", server.port or 80, gateway) as proxy:
        yield s3, f"http://{gateway}:{proxy.port}"


class LaunchedContainers(Launched):
    """A run of the driver, and the containers that it has started."""

    def __init__(self, engine: docker.DockerClient, log: Path, *arguments: object) -> None:
        self.engine = engine
        self.before = {one.id for one in engine.containers.list(all=True)}
        super().__init__(log, *LAUNCH, *ONE_NODE, *arguments)

    def node(self, replica: int, role: str = "train") -> Container:
        """The container of one node."""

        def find() -> Container | None:
            for one in self.engine.containers.list(all=True, filters={"label": LABEL_APP_ID}):
                if one.id not in self.before and one.name.endswith(f"{role}-{replica}"):
                    return one
            return None

        found = self.until(find)
        found.reload()
        return found


@pytest.fixture
def launch(engine: docker.DockerClient, tmp_path: Path) -> Callable[..., Any]:
    """`python -m components.launch` on Docker, as a context."""
    return lambda *arguments: killed_in_the_end(LaunchedContainers(engine, tmp_path / "log", *arguments))
