"""Logs reach every storage, and a log that cannot be written is a warning."""

from collections.abc import Callable

from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended
from tests.support.runs import fit

App = Callable[..., Ended]


def test_logs_reach_every_storage_and_keep_what_earlier_attempts_logged(app: App, storage: str) -> None:
    run = RunDir(storage)
    for epochs in (1, 2):
        fit(app, storage, epochs)
    names = [name.rsplit("/", 1)[-1] for name in run.fs.ls(f"{run.path}/logs", detail=False)]
    assert sum(name.startswith("events.out.tfevents") for name in names) == 2
    assert "hparams.yaml" in names
