"""The figures of a node, where Prometheus finds them."""

import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest

from pipeline.training.telemetry.exporter import MetricsEndpoint
from tests.support.commands import Ended
from tests.support.runs import FIT
from tests.support.slow_steps import SHORT, slow_fit

App = Callable[..., Ended]


class Scraper(pl.Callback):
    """Reads what a node shows while it trains.

    Args:
        url: Where.
        into: The file to write it to.
    """

    def __init__(self, url: str, into: str) -> None:
        self.url, self.into = url, into

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        Path(self.into).write_bytes(urllib.request.urlopen(self.url, timeout=10).read())


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def test_a_node_shows_its_figures_to_prometheus(app: App, tmp_path: Path) -> None:
    port, into = free_port(), tmp_path / "metrics.txt"
    ended = app(
        *(*slow_fit(), SHORT, f"--metrics_port={port}", "--trainer.max_epochs=5", "--run_dir", tmp_path / "run"),
        "--trainer.callbacks+=tests.training.telemetry.test_exporter.Scraper",
        *(f"--trainer.callbacks.url=http://localhost:{port}/metrics", f"--trainer.callbacks.into={into}"),
    )
    assert ended.status == 0, ended.err
    text = into.read_text()
    labels = f'{{node="0",run_dir="{tmp_path / "run"}"}}'
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values[f"training_step_p50{labels}"]) >= 0.01
    assert float(values[f"training_node_samples_per_second{labels}"]) > 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://localhost:{port}/metrics", timeout=10)


def test_a_port_that_is_taken_is_said_and_training_goes_on(app: App, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = app(*FIT, f"--metrics_port={port}", "--run_dir", tmp_path / "run")
    assert ended.status == 0, ended.err
    assert f"port {port} is not free" in ended.err


def test_numbers_are_shown_and_nothing_else_whatever_a_run_is_called() -> None:
    port = free_port()
    endpoint = MetricsEndpoint(port, {"run_dir": 's3://b/"x"\n}', "node": "1"})
    endpoint.show({"step_p50": 0.5, "slowest_host": "a", "nodes": [{}], "done": True})
    endpoint.show({"step_p50": 0.25})
    text = urllib.request.urlopen(f"http://localhost:{port}/metrics", timeout=10).read().decode()
    endpoint.close()
    values = [line for line in text.splitlines() if not line.startswith("#")]
    assert values == ['training_step_p50{node="1",run_dir="s3://b/\\"x\\"\\n}"} 0.25']
