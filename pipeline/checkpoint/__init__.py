"""Durable checkpoints: `record` says which exist (no torch), `callback` decides when, `io` knows how.

`resume` puts back what one holds; `state` and `sums` are what a bit-equal resume needs beside weights and optimizer.
"""
