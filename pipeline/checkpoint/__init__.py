"""Durable checkpoints: `record` says which exist (no torch), `callback` decides when, `io` is Lightning's way.

Saving: `clock` (when, by time), `plain` (what would not load again), `snapshot` (the copy that training waits for),
`saver` (the thread that commits it), `transfer` (large files to and from any storage), `retention` (which stay),
`sweep` (what killed saves left).
Loading: `load` (verified, once a node), `resume` (puts back what one holds), `state` and `sums` (what a bit-equal
resume needs beside weights and optimizer). `probe` tests a storage beforehand.
"""
