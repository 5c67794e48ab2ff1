"""Write the requirements and constraints of an image.

    python3 requirements.py cuda|cpu|driver FOLDER

FOLDER/requirements.txt has the project's dependencies with those for S3 and the requested build of torch, or those of
the driver, which has no torch; FOLDER/constraints.txt is constraints.txt with the versions for the image;
FOLDER/metadata has what tells Python and pip that the project is there, and in which version. Reads pyproject.toml and
constraints.txt beside this file. Uses only the standard library: it runs before anything is installed.
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
    # What submits, reads a run directory and writes its report, and setuptools, which installs the project itself.
    needed = [line for line in project["dependencies"] if re.match("fsspec|numpy|pyyaml|tensorboard", line)]
    requirements = ["setuptools", *needed, *extras["s3"], *extras["launch"], *extras["report"]]
else:
    requirements = ["pip", *project["dependencies"], *extras["s3"], *extras["report"]]
    for name, version in re.findall(r"^# image: ([\w.-]+)==(\S+)$", constraints, re.MULTILINE):
        constraints = re.sub(rf"^{name}==.*$", f"{name}=={version}", constraints, flags=re.MULTILINE)
match = re.search(r"^torch==\S+", constraints, re.MULTILINE)
if torch not in ("cuda", "cpu", "driver") or not match:
    sys.exit(f"error: TORCH={torch}: must be cuda or cpu, and constraints.txt must pin torch")
if torch == "cpu":
    # The version label names the build; a pin without one selects the default of the index, which is CUDA's.
    requirements.append(f"{match[0]}+cpu")
out.mkdir(parents=True, exist_ok=True)
(out / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements))
(out / "constraints.txt").write_text(constraints)
if torch != "driver":  # in whose image pip installs the project itself
    name, version = project["name"], project["version"]
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {line}" for line in project["dependencies"]]
    for extra in ("s3", "report"):
        lines += [f"Provides-Extra: {extra}", *(f"Requires-Dist: {line}; extra == '{extra}'" for line in extras[extra])]
    folder = out / "metadata" / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text("".join(f"{line}\n" for line in lines))
