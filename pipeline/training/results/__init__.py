"""What `test` and `predict` leave in a run, and the proof of it: receipt, scores, predictions.

May import what `training` may, and of it compat.py.
"""
