"""The newest figures of a node at an address that Prometheus scrapes, as OpenMetrics, where a port was asked for."""

import logging
import socket
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)


class MetricsEndpoint:
    """Serves the figures of one node at `http://<node>:<port>/metrics`, from its first process.

    Args:
        port: Between 1 and 65535.
        labels: What tells this node and run from others.
    """

    def __init__(self, port: int, labels: Mapping[str, str]) -> None:
        from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415 - only where asked for

        self._labels = dict(labels)
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Any] = {}
        self._server: Any = None
        try:
            self._server, _ = start_http_server(port, addr="0.0.0.0", registry=self._registry)  # noqa: S104 - asked for
        except OSError as error:
            log.warning("no metrics are served on %s: port %d is not free (%s)", socket.gethostname(), port, error)

    def show(self, figures: Mapping[str, Any]) -> None:
        """Serve these numbers from now on; whatever else is there is left out."""
        from prometheus_client import Gauge  # noqa: PLC0415 - only where asked for

        for name, value in figures.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if name not in self._gauges:
                described = f"{name.replace('_', ' ')}, see docs/telemetry.md"
                self._gauges[name] = Gauge(f"training_{name}", described, list(self._labels), registry=self._registry)
            self._gauges[name].labels(**self._labels).set(value)

    def close(self) -> None:
        """Serve nothing any more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
