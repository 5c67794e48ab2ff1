"""The memory of an agent, which is this process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.process.host_memory import VARIABLE, HostMemory


@contextmanager
def host_memory() -> Iterator[HostMemory]:
    """One memory, which is gone after the block."""
    before = os.environ.get(VARIABLE)
    HostMemory.create()
    files = os.environ.pop(VARIABLE).partition(":")[2].split(",")
    if before is not None:
        os.environ[VARIABLE] = before
    yield HostMemory([f"/proc/self/fd/{file}" for file in files])
    for file in files:
        os.close(int(file))
