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
    return [re.sub(r">=([\w.]+).*", r"==\1", each) for each in declared]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
