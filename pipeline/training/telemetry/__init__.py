"""What a training does right now: speed, where a step's time goes, memory, the slowest rank.

Measured on every rank, summed up about every ten seconds, for loggers, the run directory and a scraper of metrics. It
never waits for a device or for another rank, and never stops training. May import what `training` may.
"""
