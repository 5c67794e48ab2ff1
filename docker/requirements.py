"""Write down what an image installs, and in which versions.

    python3 requirements.py cuda|cpu|driver FOLDER

FOLDER/requirements.txt is the project's dependencies with those for S3, and the build of torch that is asked for, or
what the driver needs, which has no torch; FOLDER/constraints.txt is constraints.txt with the lines that it has for the
image. Reads pyproject.toml and constraints.txt beside this file. The standard library alone: this runs before anything
is installed.
"""

import re
import sys
import tomllib
from pathlib import Path

here, torch, out = Path(__file__).parent, sys.argv[1], Path(sys.argv[2])
project = tomllib.loads((here / "pyproject.toml").read_text())["project"]
constraints = (here / "constraints.txt").read_text()
extras = project["optional-dependencies"]
if torch == "driver":
    # What submits and looks at a run directory, and setuptools, by which the project itself is installed then.
    needed = [line for line in project["dependencies"] if re.match("fsspec|pyyaml", line)]
    requirements = ["setuptools", *needed, *extras["s3"], *extras["launch"]]
else:
    requirements = ["pip", *project["dependencies"], *extras["s3"]]
    for name, version in re.findall(r"^# image: ([\w.-]+)==(\S+)$", constraints, re.MULTILINE):
        constraints = re.sub(rf"^{name}==.*$", f"{name}=={version}", constraints, flags=re.MULTILINE)
match = re.search(r"^torch==\S+", constraints, re.MULTILINE)
if torch not in ("cuda", "cpu", "driver") or not match:
    sys.exit(f"error: TORCH={torch}: allowed are cuda and cpu, and constraints.txt has to pin torch")
if torch == "cpu":
    # The label in the version names the build; the pin without one takes the index's default, which is CUDA's.
    requirements.append(f"{match[0]}+cpu")
out.mkdir(parents=True, exist_ok=True)
(out / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements))
(out / "constraints.txt").write_text(constraints)
