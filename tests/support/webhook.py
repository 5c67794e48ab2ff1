"""A webhook on this machine, which remembers what it was told."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Webhook:
    """What a server was sent, and what it answers.

    Attributes:
        url: Of the server.
        told: The JSON of each request that was answered with 200.
        answers: Status and redirect for the first requests, before it answers 200.
        asked: How many requests came.
        slow: Seconds before each answer.
    """

    url: str = ""
    told: list[dict[str, Any]] = field(default_factory=list)
    answers: list[tuple[int, str]] = field(default_factory=list)
    asked: int = 0
    slow: float = 0.0


@contextmanager
def webhook() -> Iterator[Webhook]:
    """A server for one test."""
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.asked += 1
            content = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(hook.slow)
            status, location = hook.answers.pop(0) if hook.answers else (200, "")
            if status == 200:
                hook.told.append(json.loads(content))
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hook.url = f"http://127.0.0.1:{server.server_address[1]}/services/T0/S3CRET"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        server.server_close()
