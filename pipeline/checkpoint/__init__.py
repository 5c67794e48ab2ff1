"""Durable checkpoints: their bytes and commit records; no Lightning.

`commit` says which checkpoints exist (no torch). Saving: `serializable` (refuses what would not load again), `snapshot`
(the copy that training waits for), `saver` (the thread that commits it), `transfer` (large files, any storage),
`retention` (which are kept), `cleanup` (leftovers of killed saves). Loading: `load` (verified, once per node).
May import: errors, process, run, cache.
"""
