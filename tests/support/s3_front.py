"""A server in front of the S3 server of the tests: it passes requests on, and fails those that a test chooses."""

import http.client
import http.server
import io
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

FOUND = "x-amz-bucket-region"
HOP_BY_HOP = ("connection", "proxy-connection", "transfer-encoding", "content-length", "expect")


class Front(http.server.BaseHTTPRequestHandler):
    """Passes requests on to the S3 server of the tests, as a server of its own or as a proxy, and notes them."""

    protocol_version = "HTTP/1.1"
    behind = ""
    region: str | None = None
    seen: ClassVar[list[str]] = []

    def _answer(self) -> None:
        self.seen.append(f"{self.command} {self.path}")
        body = self._body()
        self._pass_on(body)

    def _pass_on(self, body: bytes) -> None:
        signed = re.search(r"Credential=[^/]+/\d+/([^/]+)/", self.headers.get("Authorization", ""))
        if self.region is not None and (signed is None or signed[1] != self.region):
            told = f"<Error><Code>AuthorizationHeaderMalformed</Code><Region>{self.region}</Region></Error>"
            self._send(400, {FOUND: self.region}, told.encode())
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        connection = http.client.HTTPConnection(self.behind)
        connection.request(self.command, re.sub(r"^https?://[^/]+", "", self.path), body or None, headers)
        answer = connection.getresponse()
        self._send(answer.status, dict(answer.getheaders()), answer.read())
        connection.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        headers = {name.lower(): value for name, value in headers.items()}
        if self.region is not None:
            headers[FOUND] = self.region
        for name, value in headers.items():
            if name not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        length = headers.get("content-length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer

    def log_message(self, *_: Any) -> None: ...


HANGS = 1.0
"""Seconds that a client of the tests waits for an answer."""


class FaultyFront(Front):
    """Fails one request, or all from there on.

    Attributes:
        number: Which request fails, counted from 1; 0: none does.
        fault: `reset`, `503`, `hang`, or `torn`: the server does what it is asked, and half of its answer is lost.
        lasting: Whether all later requests fail, too.
        asked: Number of requests so far.
    """

    lock = threading.Lock()
    number = asked = 0
    fault = "reset"
    lasting = False

    @classmethod
    def plan(cls, number: int, fault: str = "reset", lasting: bool = False) -> None:
        """Fail a request, counted from here on."""
        cls.number, cls.fault, cls.lasting, cls.asked = number, fault, lasting, 0

    def _answer(self) -> None:
        body, kind = self._body(), type(self)
        with kind.lock:
            kind.asked += 1
            fails = kind.number and (kind.asked == kind.number or (kind.lasting and kind.asked > kind.number))
            fault = kind.fault if fails else ""
        if fault == "503":
            self._send(503, {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        if fault == "hang":
            time.sleep(2 * HANGS)
        elif fault != "reset":
            whole, self.wfile = self.wfile, io.BytesIO() if fault else self.wfile  # type: ignore[assignment]
            self._pass_on(body)
            if fault:
                answer = self.wfile.getvalue()
                whole.write(answer[: len(answer) - len(answer.partition(b"\r\n\r\n")[2]) // 2 - 1])
        if fault:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer


@contextmanager
def fronted(kind: type[Front], context: ssl.SSLContext | None = None) -> Iterator[http.server.ThreadingHTTPServer]:
    """Serve on a port of this machine until the block ends."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
