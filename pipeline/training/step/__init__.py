"""One batch of training or evaluation: Lightning's calls in Lightning's order, without those that nobody asked for.

It may import what lies below `training/`, and `training/compat.py`. Only the two loops use it: `epoch_loop` and
`evaluation_loop`.
"""
