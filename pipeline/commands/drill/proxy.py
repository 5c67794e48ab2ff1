"""An outage of what speaks TCP or HTTP: a proxy in front of it, which can be cut off and restored."""

import asyncio
import re
import socket
import struct
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

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
        self._loop = asyncio.new_event_loop()
        self._listening: asyncio.Server | None = None
        self._open: dict[asyncio.Task[Any], set[StreamWriter]] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    def __enter__(self) -> Self:
        """Start to listen."""
        self._thread.start()
        self.restore()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End all connections."""
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def restore(self) -> None:
        """Accept connections."""
        self._run(self._listen())

    def cut(self) -> None:
        """Reset all connections that are open, and refuse new ones."""
        self._run(self._reset())

    def _run(self, action: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(action, self._loop).result()

    async def _listen(self) -> None:
        if self._listening is None:
            self._listening = await asyncio.start_server(self._serve, self._address, self.port)
            self.port = int(self._listening.sockets[0].getsockname()[1])

    async def _reset(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        for task, both in self._open.items():
            for writer in both:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._open)

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Forward one connection until it ends."""
        task, both = asyncio.current_task(), {writer}
        assert task is not None
        self._open[task] = both
        try:
            # A connection that came right before a cut is not forwarded.
            if self._listening is not None:
                back, onward = await self._connect(reader, writer)
                both.add(onward)
                await asyncio.gather(_pump(reader, onward), _pump(back, writer))
        except (OSError, EOFError, ValueError, asyncio.CancelledError):
            pass
        finally:
            del self._open[task]
            for each in both:
                each.close()

    async def _connect(self, reader: StreamReader, writer: StreamWriter) -> tuple[StreamReader, StreamWriter]:
        """Open the connection onward for one that has come."""
        return await asyncio.open_connection(*self._server)


class ForwardProxy(Proxy):
    """The same for every host that a program asks over HTTP or HTTPS: HTTP_PROXY and HTTPS_PROXY name it.

    Attributes:
        used: Whether anything was asked.
    """

    def __init__(self) -> None:
        super().__init__("", 0)
        self.used = False

    async def _connect(self, reader: StreamReader, writer: StreamWriter) -> tuple[StreamReader, StreamWriter]:
        self.used = True
        line, _, fields = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
        method, target, version = line.split()
        url = urlsplit(target if method != b"CONNECT" else b"//" + target)
        back, onward = await asyncio.open_connection((url.hostname or b"").decode(), url.port or 80)
        if method == b"CONNECT":
            writer.write(version + b" 200 OK\r\n\r\n")
        else:
            # Its next request may be for another host: let it come by a connection of its own.
            fields = re.sub(rb"(?im)^(proxy-)?connection:.*\r\n", b"", fields)
            path = (url.path or b"/") + (b"?" + url.query if url.query else b"")
            onward.write(b" ".join([method, path, version]) + b"\r\nConnection: close\r\n" + fields)
        return back, onward


async def _pump(source: StreamReader, sink: StreamWriter) -> None:
    """Forward bytes until there are no more, and then their end."""
    while data := await source.read(_CHUNK):
        sink.write(data)
        await sink.drain()
    sink.write_eof()
