"""What a user reads of a run: the console, TensorBoard, and the folder that is mirrored to remote storage.

Nothing here ever stops training. May import what `training` may, and of it compat.py.
"""
