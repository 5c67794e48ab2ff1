"""What has to be seen on a CUDA device: checks by hand, `make gpu-check`, not tests that anybody collects."""

import os

# Checks run in forks: whether there is a device is asked of NVML, which leaves this process without one.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
