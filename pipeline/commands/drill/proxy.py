"""An outage of a storage that speaks TCP: a proxy in front of it, which can be cut off and restored."""

import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

_CHUNK = 1 << 16
_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: closing resets the connection."""


class Proxy:
    """Forwards connections to a server until it is cut off, and again once it is restored.

    Args:
        host: Of the server.
        port: Of the server.
        address: Of this machine, where it listens.

    Attributes:
        port: Where it listens on this machine; the same after each cut.
    """

    def __init__(self, host: str, port: int, address: str = "127.0.0.1") -> None:
        self._server = host, port
        self._address = address
        self._mutex = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listening: socket.socket | None = None
        self._away = threading.Event()
        self.port = 0

    def __enter__(self) -> Self:
        """Start to listen."""
        self.restore()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End all connections."""
        self.cut()

    def restore(self) -> None:
        """Accept connections."""
        with self._mutex:
            if self._listening is not None:
                return
            self._listening = socket.create_server((self._address, self.port), backlog=128)
            self.port = int(self._listening.getsockname()[1])
            self._away = threading.Event()
            threading.Thread(target=self._accept, args=(self._listening, self._away), daemon=True).start()

    def cut(self) -> None:
        """Reset all connections that are open, and refuse new ones."""
        with self._mutex:
            self._away.set()
            if self._listening is not None:
                # Closing alone would not wake the thread that waits in accept().
                with suppress(OSError):
                    self._listening.shutdown(socket.SHUT_RDWR)
                self._listening.close()
                self._listening = None
            for each in self._open:
                with suppress(OSError):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                with suppress(OSError):
                    # Wakes the thread that reads from it, which then closes it, with a reset.
                    each.shutdown(socket.SHUT_RD)
            self._open.clear()

    def _accept(self, listening: socket.socket, away: threading.Event) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client, away), daemon=True).start()

    def _serve(self, client: socket.socket, away: threading.Event) -> None:
        """Forward one connection until it ends."""
        try:
            server = socket.create_connection(self._server, timeout=10)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        both = client, server
        with self._mutex:
            cut = away.is_set()
            if not cut:
                self._open.update(both)
        if not cut:
            back = threading.Thread(target=_pump, args=(server, client, away), daemon=True)
            back.start()
            _pump(client, server, away)
            back.join()
        with self._mutex:
            self._open.difference_update(both)
        for each in both:
            each.close()


def _pump(source: socket.socket, sink: socket.socket, away: threading.Event) -> None:
    """Forward bytes until there are no more, and then their end; after a cut a reset stands for it."""
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            sink.sendall(data)
    if not away.is_set():
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
