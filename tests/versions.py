"""The requirements of the lowest or the newest versions that pyproject.toml declares, a line each, for pip.

python -m tests.versions lowest|newest
"""

import re
import sys
import tomllib
from pathlib import Path


def requirements(which: str) -> list[str]:
    """Return what pip is to install: `name==lower bound` for the lowest versions, the ranges for the newest."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["s3"]]
    if which == "newest":
        return declared
    # Where they are not named, pip tries a hundred versions of both.
    of_s3fs = ["aiobotocore==2.21.1", "boto3==1.37.1"]
    return [*(re.sub(r">=([\w.]+).*", r"==\1", each) for each in declared), *of_s3fs]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
