"""Give other nodes of a launch what this node holds in a file, in parallel parts and verified.

The port is open only while ranks start and some node lacks what this one has, at the address by which this node reaches
the launch's own store. It answers only to who proves that it knows a secret that rank 0 has drawn for this purpose and
shared through that store: who may read the store is trusted, nobody else. A request is an HMAC-SHA-256 over a number
that the server has drawn and the range, then the range: where it begins, and its length; the answer is its bytes.
"""

import hashlib
import hmac
import os
import secrets
import socket
import socketserver
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Self

PART = 8 << 20
"""Bytes of a part."""
_AT_ONCE = 4
_SECONDS = 20.0
"""Without a byte, after which a peer is given up."""
_NONCE, _PROOF = 16, 32
_RANGE = struct.Struct("!QQ")


class TransferFailed(Exception):
    """A peer is gone, answers no more, refuses, or has sent other bytes than it should."""


class PeerServer:
    """Serves one file, for as long as the `with` block runs.

    Args:
        path: Of the file.
        size: How much of it, in bytes.
        secret: That a peer must know.
        host: The address to listen at.
    """

    def __init__(self, path: str, size: int, secret: bytes, host: str) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                _serve(self.request, path, size, secret)

        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = type("Server", (socketserver.ThreadingTCPServer,), {"address_family": family, "daemon_threads": True})
        self._server: socketserver.ThreadingTCPServer = server((host, 0), Handler)
        self._server.handle_error = lambda *_: None  # a peer that is gone is its own matter
        self._pool = ThreadPoolExecutor(1, "peer-server")

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def __enter__(self) -> Self:
        self._pool.submit(self._server.serve_forever, 0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._pool.shutdown()


def own_address(environment: Mapping[str, str] = os.environ) -> str:
    """Return the address by which this machine reaches the launch's store, which is one that its other nodes reach."""
    host, port = environment.get("MASTER_ADDR", "localhost"), int(environment.get("MASTER_PORT", "1"))
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:  # sends nothing
        probe.connect(address)
        return str(probe.getsockname()[0])


def digest(path: str, size: int) -> str:
    """Return the digest of a file's first bytes: the SHA-256 of the SHA-256 of each part, in hexadecimal digits."""
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(_AT_ONCE, "digest") as pool:

        def part(start: int) -> bytes:
            return hashlib.sha256(os.pread(file.fileno(), min(PART, size - start), start)).digest()

        return _root(list(pool.map(part, range(0, size, PART))))


def fetch(address: tuple[str, int], secret: bytes, size: int, expected: str, file: int) -> None:
    """Fetch what a peer serves into an open file.

    Args:
        address: Where it listens.
        secret: That the peer knows.
        size: Its bytes.
        expected: Their `digest`.
        file: The descriptor of the file, which is written from its beginning.

    Raises:
        TransferFailed: It could not be fetched, or is something else.
    """
    starts = range(0, size, PART)

    def parts(worker: int) -> list[bytes]:
        buffer = memoryview(bytearray(min(PART, size)))
        with socket.create_connection(address, timeout=_SECONDS) as connection:
            own = islice(starts, worker, None, _AT_ONCE)
            return [_part(connection, secret, start, buffer[: size - start], file) for start in own]

    try:
        with ThreadPoolExecutor(_AT_ONCE, "fetch") as pool:
            done = list(pool.map(parts, range(min(_AT_ONCE, len(starts)))))
    except OSError as error:
        raise TransferFailed(f"{address[0]}:{address[1]}: {error}") from error
    digests = [done[at % _AT_ONCE][at // _AT_ONCE] for at in range(len(starts))]
    if _root(digests) != expected:
        raise TransferFailed(f"{address[0]}:{address[1]}: its bytes are others than they should be")


def _part(connection: socket.socket, secret: bytes, start: int, data: memoryview, file: int) -> bytes:
    """Fetch a part through a buffer of its length, and return its digest."""
    asked = _RANGE.pack(start, len(data))
    nonce = bytearray(_NONCE)
    _receive(connection, memoryview(nonce))
    connection.sendall(hmac.digest(secret, bytes(nonce) + asked, "sha256") + asked)
    _receive(connection, data)
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], start + written)
    return hashlib.sha256(data).digest()


def _serve(connection: socket.socket, path: str, size: int, secret: bytes) -> None:
    """Answer the requests of one peer."""
    connection.settimeout(_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with open(path, "rb", buffering=0) as file:
        while True:
            nonce = secrets.token_bytes(_NONCE)
            connection.sendall(nonce)
            request = bytearray(_PROOF + _RANGE.size)
            _receive(connection, memoryview(request))
            proof, asked = bytes(request[:_PROOF]), bytes(request[_PROOF:])
            if not hmac.compare_digest(proof, hmac.digest(secret, nonce + asked, "sha256")):
                return
            start, length = _RANGE.unpack(asked)
            if not (start + length <= size and length <= PART):
                return
            connection.sendfile(file, start, length)


def _receive(connection: socket.socket, into: memoryview) -> None:
    """Fill a buffer.

    Raises:
        ConnectionError: The peer has closed the connection before.
    """
    came = 0
    while came < len(into):
        count = connection.recv_into(into[came:])
        if not count:
            raise ConnectionError("the connection was closed")
        came += count


def _root(digests: list[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()
