"""What a run leaves behind, and who may write it: run directory, storage, lease, attempts, goodput.

May import: errors, process. Never torch or Lightning.
"""
