"""From an edit to running containers: patched by TorchX, and built anew, against a run without a change.

IMAGE=torchx-lightning-pipeline:latest python -m tests.benchmarks.turnaround [PAIRS]

Each time ends when the nodes have met and say that they have started. Two containers on this machine's engine.
"""

import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from statistics import median

import docker
from torchx.schedulers.docker_scheduler import LABEL_APP_ID

ROOT = Path(__file__).parents[2]


def started(*arguments: str) -> float:
    """Seconds until a run says that it has started; it is ended then."""
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
                raise SystemExit("".join(said))
            seconds = time.monotonic() - began
            process.terminate()
    for one in docker.from_env().containers.list(all=True, filters={"label": LABEL_APP_ID}):
        one.remove(force=True, v=True)
    return seconds


def main(pairs: int) -> None:
    plain, patched, built = [], [], []
    for _ in range(pairs):
        plain.append(started())
        with tempfile.TemporaryDirectory() as workspace:
            Path(workspace, "mine.py").write_text(f"EDITED = {uuid.uuid4().hex!r}\n")
            patched.append(started("--workspace", workspace))
        edited = ROOT / "pipeline/edited_by_a_benchmark.py"
        try:
            edited.write_text(f"EDITED = {uuid.uuid4().hex!r}\n")
            began = time.monotonic()
            subprocess.run(["make", "image"], cwd=ROOT, check=True, capture_output=True)
            built.append(time.monotonic() - began + started())
        finally:
            edited.unlink()
    for name, seconds in (("no change", plain), ("patched", patched), ("built", built)):
        ratios = sorted(one / other for one, other in zip(seconds, plain, strict=True))
        print(
            f"{name:9}  {median(seconds):5.1f} s ({min(seconds):.1f} .. {max(seconds):.1f})   "
            f"{median(ratios):.2f} x ({ratios[0]:.2f} .. {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
