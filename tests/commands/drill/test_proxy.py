"""An outage resets and refuses connections, and ends."""

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from pipeline.commands.drill.proxy import ForwardProxy, Proxy
from tests.support.web_host import Host


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


def test_what_is_asked_by_http_or_in_a_tunnel_of_https_passes_a_forward_proxy_until_it_is_cut(echo: int) -> None:
    host = Host()
    with ForwardProxy() as proxy:
        assert not proxy.used
        for _ in range(2):
            asking = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5)
            asking.request("GET", host.url, headers={"Proxy-Connection": "keep-alive"})
            assert asking.getresponse().read() == host.data
        assert proxy.used
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as tunnel:
            tunnel.sendall(f"CONNECT 127.0.0.1:{echo} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert tunnel.recv(100) == b"HTTP/1.1 200 OK\r\n\r\n"
            tunnel.sendall(b"\x16\x03 hello")
            assert tunnel.recv(100) == b"\x16\x03 hello"
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                tunnel.recv(1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
        proxy.restore()
        for nonsense in (b"", b"\r\n\r\n", b"GET\r\n\r\n", b"GET http://127.0.0.1:1/ HTTP/1.1\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
                client.sendall(nonsense)
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
    host.gone()
