"""Slurm's commands as scripts that answer as they are told, for what is tried without a Slurm."""

import os
import subprocess
from pathlib import Path

import pytest

SRUN = """
# A step that ends as the plan's line of this start says: the status of each node, in the order in which they end.
echo "srun $*" >>"$CALLS"
trap : USR1
read -r statuses <<EOF
$(sed -n "${PIPELINE_SLURM_START}p" "$PLAN")
EOF
node=0 worst=0
for status in $statuses; do
  case $status in
    ask) kill -USR1 "$PPID"; sleep 3; continue ;;
    term) kill -TERM "$PPID"; sleep 3; continue ;;
    cancel) kill -USR2 "$PPID"; sleep 3; continue ;;
    lost) exit 1 ;;
    early) trap - USR1; kill -USR1 "$PPID"; sleep 3; exit 1 ;;
  esac
  echo "$node$node $status $node" >"$PIPELINE_SLURM_FOLDER/ended/$PIPELINE_SLURM_START-$node"
  if [ "$status" -gt "$worst" ]; then worst=$status; fi
  node=$((node + 1))
done
exit $worst
"""
JOB = "JobId=7 JobName=train JobState=RUNNING Reason=None Restarts=0 ExitCode=0:0 PreemptTime=None NumNodes=2"


class FakeSlurm:
    """Commands in front of the others on the PATH.

    Args:
        folder: Where they are.
        monkeypatch: Puts them there.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.calls_file, self.plan = folder / "calls", folder / "plan"
        self.calls_file.touch()
        monkeypatch.setenv("PATH", f"{self.bin}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
        monkeypatch.setenv("CALLS", str(self.calls_file))
        monkeypatch.setenv("PLAN", str(self.plan))
        self.answers("sleep", "", script='exec /bin/sleep 0.0"$1"')
        for name in ("scontrol", "squeue", "sinfo", "scancel", "sacct"):
            self.answers(name, "")

    def answers(self, name: str, out: str, *, err: str = "", status: int = 0, script: str = "") -> None:
        """Let a command print something and end with a status, or run a script."""
        path = self.bin / name
        # A command that runs now sees the old answer or the new one.
        for stream, text in (("out", out), ("err", err)):
            (self.bin / f".{name}.{stream}.new").write_text(text)
            (self.bin / f".{name}.{stream}.new").rename(self.bin / f".{name}.{stream}")
        noted = f'echo "{name} $*" >>"$CALLS"'
        here = f'{noted}\ncat "{self.bin}/.{name}.out"\ncat "{self.bin}/.{name}.err" >&2\nexit {status}'
        new = path.with_suffix(".new")
        new.write_text(f"#!/bin/sh\n{script or here}\n")
        new.chmod(0o755)
        new.rename(path)

    @property
    def calls(self) -> list[str]:
        """What was called, with its arguments."""
        return self.calls_file.read_text().splitlines()

    def run_job(self, folder: Path, batch: str, *plan: str, left: int = 3600) -> "subprocess.CompletedProcess[str]":
        """Run a batch script of two nodes.

        Args:
            folder: Of the job.
            batch: The script.
            plan: For each start how its nodes end.
            left: Seconds to the time limit.
        """
        self.plan.write_text("\n".join(plan))
        self.answers("srun", "", script=SRUN)
        self.answers("squeue", "", script=f"date -d '+{left} seconds' +%FT%T")
        hosts = 'case $1$2 in showhostnames) printf "n1\\nn2\\n" ;; *) echo "' + JOB + '" ;; esac'
        self.answers("scontrol", "", script=f'echo "scontrol $*" >>"$CALLS"\n{hosts}')
        folder.mkdir(exist_ok=True)
        script = folder / "job.sh"
        script.write_text(batch)
        environment = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
        return subprocess.run(
            ["bash", str(script)], env=environment, capture_output=True, text=True, timeout=30, check=False
        )
