"""Everything that knows Lightning, from one batch to the next.

What training itself does stands here: checkpoints.py, hooks.py and epoch_loop.py call session.py, which captures and
restores by trainer_state.py. Below them, each a concern of its own: state/ (what a checkpoint holds), loaders/ (where
the user's own loaders stand), results/ (what `test` and `predict` leave) and logs/ (what a user reads).

May import: all below it, that is errors, process, run, data, cache and checkpoint.
"""
