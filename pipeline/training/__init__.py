"""Everything that knows Lightning: session, epoch loop, vote, trainer, weights, receipt, loggers, console.

May import: all below it, that is errors, process, run, data, cache and checkpoint.
"""
