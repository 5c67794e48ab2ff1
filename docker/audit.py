"""Look up every Python package of an image in the database of known vulnerabilities.

    python docker/audit.py torchx-lightning-pipeline:latest

Runs pip-audit in an environment of its own (build/audit) on the packages in the image's own list. Exits with 1 for a
vulnerability that has a fix and is no exception, and with 3 if the database cannot be reached.
"""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXCEPTIONS: dict[str, str] = {}
"""Identifiers of accepted vulnerabilities, each with the reason."""


def main(image: str) -> int:
    """Audit an image and print what must be fixed."""
    docker = os.environ.get("DOCKER") or "docker"
    listing = ["run", "--rm", "--network", "none", image, "cat", "/opt/venv/sbom.cdx.json"]
    packages = json.loads(subprocess.run([docker, *listing], check=True, capture_output=True).stdout)["components"]
    environment = ROOT / "build/audit"
    if not (environment / "bin/pip-audit").exists():
        venv.create(environment, with_pip=True)
        pins = ("-c", ROOT / "pipeline/constraints.txt", "-c", ROOT / "constraints-dev.txt")
        install = ["install", "--quiet", "--disable-pip-version-check", *pins, "pip-audit"]
        subprocess.run([environment / "bin/pip", *install], check=True)
    packages_file = environment / "packages.txt"
    # The database does not know the label of a build, such as +cpu.
    packages_file.write_text("".join(f"{each['name']}=={each['version'].partition('+')[0]}\n" for each in packages))
    flags = ["--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json", "-r", packages_file]
    audit = subprocess.run([environment / "bin/pip-audit", *flags], capture_output=True, text=True, check=False)
    try:
        found = json.loads(audit.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"not audited: {audit.stderr.strip()[-500:]}")
        return 3
    skipped = [each["name"] for each in found if "skip_reason" in each]
    if len(skipped) == len(found):
        print(
            f"not audited: the database of known vulnerabilities has none of {len(found)} packages, or is unreachable"
        )
        return 3
    known = [(each, flaw) for each in found for flaw in each.get("vulns", ()) if flaw["fix_versions"]]
    fixable = [(each, flaw) for each, flaw in known if not {flaw["id"], *flaw["aliases"]} & EXCEPTIONS.keys()]
    for each, flaw in fixable:
        print(f"{each['name']} {each['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions'])}")
    if skipped:
        print(f"unknown to the database: {', '.join(skipped)}")
    print(f"{len(found) - len(skipped)} packages audited: {len(fixable)} to fix, {len(known) - len(fixable)} excepted")
    return 1 if fixable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
