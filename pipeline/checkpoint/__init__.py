"""Durable checkpoints: their bytes and commit records; no Lightning.

`commit` says which checkpoints exist (no torch). Saving: `serializable` (refuses what would not load again), `snapshot`
(the copy that training waits for), `saver` (the thread that commits it), `transfer` (large files, any storage),
`retention` (which are kept), `cleanup` (leftovers of killed saves). Loading: `load` (verified, once per node),
`foreign` (files of other programs, and what they are), `weight_files` (weights by name in any of them).
May import: errors, process, run, cache.
"""
