"""The memory of an agent, which is this process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.process.host_memory import VARIABLE, HostMemory


@contextmanager
def host_memory() -> Iterator[HostMemory]:
    """One memory, named to the processes that are started within the block, and gone after it."""
    before = os.environ.get(VARIABLE)
    HostMemory.create()
    files = os.environ[VARIABLE].partition(":")[2].split(",")
    yield HostMemory([f"/proc/self/fd/{file}" for file in files])
    for file in files:
        os.close(int(file))
    del os.environ[VARIABLE]
    if before is not None:
        os.environ[VARIABLE] = before
