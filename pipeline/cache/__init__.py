"""Files on any fsspec URL, fetched once per node, verified, and memory-mapped: `pipeline.cache.mapped`.

`fetch` gets and verifies them, `folder` locks and bounds the cache, `mapping` maps them for any number of processes.
May import: errors, process, run.
"""

from pipeline.cache.mapping import Mapped, mapped

__all__ = ["Mapped", "mapped"]
