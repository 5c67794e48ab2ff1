"""Every private member of torch's SummaryWriter that logs build on, and why; see `pipeline.training.compat`."""

import time
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils.tensorboard.writer import FileWriter, SummaryWriter

from pipeline.training.compat import Member, check

MEMBERS = (
    Member(SummaryWriter, "_get_file_writer", (), "has event_writer, and begins another file after `close`"),
    Member(FileWriter, "event_writer", None, "takes whole events, with the time at which they were written first"),
    Member(EventFileWriter, "_file_name", None, "tells how large an events file has become"),
)

check(MEMBERS)


def write_event(writer: Any, event: Any) -> None:
    """Write an event as it is; one without a time gets that of now."""
    if not event.wall_time:
        event.wall_time = time.time()
    writer._get_file_writer().event_writer.add_event(event)


def write_summary(writer: Any, summary: Any) -> None:
    """Write a summary that belongs to no step."""
    write_event(writer, Event(summary=summary))


def file_of(writer: Any) -> str:
    """Return the path of the file that a writer writes."""
    return str(writer._get_file_writer().event_writer._file_name)
