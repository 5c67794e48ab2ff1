"""Files on any fsspec URL, fetched once a node, verified, and memory-mapped: `pipeline.cache.mapped`.

`fetch` gets and verifies them, `folder` locks and bounds the cache, `mapping` maps them for any number of processes.
"""

from pipeline.cache.fetch import mapped
from pipeline.cache.mapping import Mapped

__all__ = ["Mapped", "mapped"]
