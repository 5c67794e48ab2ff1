"""An outage resets and refuses connections, and ends."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from pipeline.commands.drill.proxy import Proxy


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that answers with what it hears."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve(client: socket.socket) -> None:
            with client, suppress(ConnectionResetError):
                while data := client.recv(1024):
                    client.sendall(data)

        def accept() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def test_a_proxy_passes_on_cuts_and_restores(echo: int) -> None:
    def connected() -> socket.socket:
        return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)

    with Proxy("127.0.0.1", echo) as proxy:
        with connected() as client:
            client.sendall(b"hello")
            assert client.recv(1024) == b"hello"
            port = proxy.port
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                client.recv(1024)
        with pytest.raises(ConnectionRefusedError):
            connected()
        proxy.restore()
        assert proxy.port == port
        with connected() as client:
            client.sendall(b"again")
            client.shutdown(socket.SHUT_WR)
            assert client.makefile("rb").read() == b"again", "and its end is passed on"
    with pytest.raises(ConnectionRefusedError):
        connected()
