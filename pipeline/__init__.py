"""Multi-node training with Lightning and TorchX: what runs in the container.

Light on purpose: the submitter imports :mod:`pipeline.run.run_dir` and the commit records from here without torch.
"""
