"""A web server that sends, says and delays what a test wants."""

import http.server
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

DATA = np.random.default_rng(0).integers(0, 256, 3_000_001, dtype=np.uint8).tobytes()


class Host:
    """A web server with a will: what it sends, what it says about it, and how slowly."""

    def __init__(self) -> None:
        self.data, self.tag, self.length = DATA, '"1"', True
        self.sends: Callable[[int], bytes] = lambda request: self.data
        self.slow = threading.Event()
        self.started = threading.Event()
        self.requests: list[str] = []
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                host.requests.append(self.command)
                if self.path != "/file":
                    self.send_error(404)
                    return
                self.send_response(200)
                if host.length:
                    self.send_header("Content-Length", str(len(host.data)))
                if host.tag:
                    self.send_header("ETag", host.tag)
                self.end_headers()

            def do_GET(self) -> None:
                self.do_HEAD()
                data = host.sends(host.requests.count("GET")) if self.path == "/file" else b""
                try:
                    self.wfile.write(data[: len(data) // 2])
                    host.started.set()
                    while host.slow.is_set():
                        time.sleep(0.01)
                    self.wfile.write(data[len(data) // 2 :])
                except OSError:  # the reader is dead
                    pass

            def log_message(self, *_: Any) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/file"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def gone(self) -> None:
        self.server.shutdown()
        self.server.server_close()
