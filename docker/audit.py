"""Ask the database of known vulnerabilities about every Python package of an image.

    python docker/audit.py torchx-lightning-pipeline:latest

Runs pip-audit in an environment of its own (build/audit) on the packages that the image's own list names. Ends with 1
for a vulnerability that has a fix and is no exception, and with 3 where the database cannot be asked.
"""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXCEPTIONS: dict[str, str] = {}
"""Identifiers of vulnerabilities that stay, each with the reason."""


def main(image: str) -> int:
    """Audit an image, and say what is to be mended."""
    docker = os.environ.get("DOCKER") or "docker"
    listing = ["run", "--rm", "--network", "none", image, "cat", "/opt/venv/sbom.cdx.json"]
    packages = json.loads(subprocess.run([docker, *listing], check=True, capture_output=True).stdout)["components"]
    here = ROOT / "build/audit"
    if not (here / "bin/pip-audit").exists():
        venv.create(here, with_pip=True)
        install = ["install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt", "pip-audit"]
        subprocess.run([here / "bin/pip", *install], check=True)
    # A label of a build, such as +cpu, is no version that a database knows.
    pins = "".join(f"{each['name']}=={each['version'].partition('+')[0]}\n" for each in packages)
    asked = here / "packages.txt"
    asked.write_text(pins)
    flags = ["--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json", "-r", asked]
    said = subprocess.run([here / "bin/pip-audit", *flags], capture_output=True, text=True, check=False)
    try:
        found = json.loads(said.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"not audited: {said.stderr.strip()[-500:]}")
        return 3
    unasked = [each["name"] for each in found if "skip_reason" in each]
    if len(unasked) == len(found):
        print(f"not audited: the database of known vulnerabilities knows none of {len(found)} packages from here")
        return 3
    known = [(each, flaw) for each in found for flaw in each.get("vulns", ()) if flaw["fix_versions"]]
    to_mend = [(each, flaw) for each, flaw in known if not {flaw["id"], *flaw["aliases"]} & EXCEPTIONS.keys()]
    for each, flaw in to_mend:
        print(f"{each['name']} {each['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions'])}")
    if unasked:
        print(f"unknown to the database: {', '.join(unasked)}")
    print(f"{len(found) - len(unasked)} packages audited: {len(to_mend)} to mend, {len(known) - len(to_mend)} excepted")
    return 1 if to_mend else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
