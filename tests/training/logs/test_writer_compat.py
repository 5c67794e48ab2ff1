"""What logs build on inside torch's SummaryWriter is there, and does what it is for."""

from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from pipeline.training.compat import missing
from pipeline.training.logs.event_files import mark, read_events
from pipeline.training.logs.writer_compat import MEMBERS, file_of, write_event, write_summary


def test_every_private_member_is_there() -> None:
    assert list(missing(MEMBERS)) == []


def test_events_keep_their_time_and_those_without_get_one(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    old = mark(3)
    old.wall_time = 12.5
    write_event(writer, old)
    write_event(writer, mark(4))
    write_summary(writer, Summary(value=[Summary.Value(tag="x", simple_value=1.0)]))
    path = Path(file_of(writer))
    writer.close()
    _, first, second, third = read_events(path.read_bytes())
    assert (first.wall_time, first.step) == (12.5, 3)
    assert second.wall_time > 1e9
    assert third.summary.value[0].tag == "x"
