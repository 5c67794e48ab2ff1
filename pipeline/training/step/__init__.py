"""One batch of training: the same calls in the same order as Lightning makes them, without those that nobody asked for.

It may import what lies below `training/`, and `training/compat.py`. Only the epoch loop uses it.
"""
