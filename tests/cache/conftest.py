"""A web server to fetch from."""

from collections.abc import Iterator

import pytest

from tests.support.web_host import Host


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.slow.clear()
    host.gone()
