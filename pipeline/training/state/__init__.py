"""What a checkpoint holds beside Lightning's own: each part is captured between two batches and put back by a resume.

run_state.py owns the keys; trainer_state.py, above this folder, asks each part. May import what `training` may, and of
it compat.py, save_policy.py and trainer.py.
"""
