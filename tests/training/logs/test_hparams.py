"""A run is one row of TensorBoard's HParams table, however many attempts it took."""

from collections.abc import Callable
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from pipeline.run.run_dir import LOGS, RunDir
from pipeline.training.logs.event_files import read_events
from pipeline.training.logs.tensorboard import RunLogger
from tests.support.commands import Ended
from tests.support.runs import fit

App = Callable[..., Ended]


def test_the_hparams_table_has_one_session_of_a_run_over_its_attempts_and_no_placeholder(
    app: App, storage: str, tmp_path: Path
) -> None:
    run = RunDir(storage)
    for epochs in (1, 2):
        ended = fit(app, storage, epochs, "--model.learning_rate=0.02", "--trainer.log_every_n_steps=1")
        assert ended.status == 0, ended.text
    run.fs.get(f"{run.path}/{LOGS}/", str(tmp_path / "copy"), recursive=True)
    found = EventAccumulator(str(next((tmp_path / "copy").rglob("events.*")).parent)).Reload()
    content = {tag: metadata.plugin_data.content for tag, metadata in found.summary_metadata.items()}
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info
    end = HParamsPluginData.FromString(content["_hparams_/session_end_info"]).session_end_info
    assert set(start.hparams) == {"learning_rate", "dropout"}
    assert start.hparams["learning_rate"].number_value == 0.02
    assert end.status == Status.Value("STATUS_SUCCESS")
    assert "hp_metric" not in found.Tags()["scalars"]
    assert {"val_loss", "train_loss"} <= set(found.Tags()["scalars"])


def test_a_run_that_is_not_over_has_no_end_in_the_table(tmp_path: Path) -> None:
    logger = RunLogger(RunDir(str(tmp_path)), step=0)
    logger.log_hyperparams({"nested": {"rate": 0.5, "on": True, "none": None}, "layers": [1, 2]})
    logger.finalize("failed")
    values = [
        value
        for event in read_events(next((tmp_path / LOGS).glob("events.*")).read_bytes())
        for value in event.summary.value
    ]
    (start,) = values
    session = HParamsPluginData.FromString(start.metadata.plugin_data.content).session_start_info
    assert session.hparams["nested/rate"].number_value == 0.5
    assert session.hparams["nested/on"].number_value == 1.0
    assert session.hparams["layers"].string_value == "[1, 2]"
