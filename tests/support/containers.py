"""The image that the tests of containers run, and how they launch it."""

import os
import sys

from tests.support.commands import DIGITS

IMAGE = os.environ.get("IMAGE") or "torchx-lightning-pipeline:latest"
LAUNCH = (sys.executable, "-m", "components.launch", "-s", "local_docker", "--image", IMAGE, "--config", DIGITS)
ONE_NODE = ("--cpu", "1", "--memory", "1500")
