"""From an edit to running containers: patched by TorchX, and built anew, beside a launch without a change.

IMAGE=torchx-lightning-pipeline:latest python -m tests.benchmarks turnaround

Each time ends when the nodes have met and say that they have started. Two containers on this machine's engine.
"""

import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from tests.benchmarks.subject import Contenders, Context, Reading, subject
from tests.support.commands import ROOT


def started(*arguments: str) -> Reading:
    """Seconds until a run says that it has started; it is ended then."""
    import docker
    from torchx.schedulers.docker_scheduler import LABEL_APP_ID

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        mounts = ("--mounts", f"type=bind,src={folder},dst=/runs", "--run_dir", "/runs/one")
        launch = (sys.executable, "-m", "components.launch", "-s", "local_docker", "--nodes", "2", "--cpu", "1")
        with subprocess.Popen(
            [*launch, *mounts, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if line.startswith("started on 2 nodes"):
                    break
            else:
                raise RuntimeError("".join(said))
            seconds = time.monotonic() - began
            process.terminate()
    for one in docker.from_env().containers.list(all=True, filters={"label": LABEL_APP_ID}):
        one.remove(force=True, v=True)
    return {"wall": seconds}


def patched() -> Reading:
    with tempfile.TemporaryDirectory() as workspace:
        Path(workspace, "mine.py").write_text(f"EDITED = {uuid.uuid4().hex!r}\n")
        return started("--workspace", workspace)


def built() -> Reading:
    edited = ROOT / "pipeline/edited_by_a_benchmark.py"
    try:
        edited.write_text(f"EDITED = {uuid.uuid4().hex!r}\n")
        began = time.monotonic()
        subprocess.run(["make", "image"], cwd=ROOT, check=True, capture_output=True)
        building = time.monotonic() - began
        return {"wall": building + started()["wall"]}
    finally:
        edited.unlink()


@subject("turnaround", unit="s", reference="no change", rounds=(0, 0, 0))
def turnaround(context: Context) -> Contenders:
    """From an edit to two running containers."""
    return {"no change": started, "patched": patched, "built": built}
