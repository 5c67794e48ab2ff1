"""Started by torchrun: runs many command lines, one after the other, in the same ranks. Importing takes longest.

    torchrun -m tests.support.rank_runner <plan.json>

The plan is a list of command lines of the app; `["only", straight, run, step]` makes a run that was killed right after
it had saved a step of another one. Writes the status of each command line to `<plan.json>.<rank>`.
"""

import json
import os
import sys
from pathlib import Path

from torch.distributed import rendezvous

from pipeline.cli import main
from tests.support.agent_harness import free_port
from tests.support.resumes import only

if __name__ == "__main__":
    plan = Path(sys.argv[1])
    agent, _, _ = next(rendezvous("env://"))
    statuses = []
    for number, line in enumerate(json.loads(plan.read_text())):
        # A store of its own for each line: torch's process groups would find the answers of the line before.
        if os.environ["RANK"] == "0":
            agent.set(f"port/{number}", str(free_port()))
        os.environ |= {"MASTER_PORT": agent.get(f"port/{number}").decode(), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        if line[0] != "only":
            statuses.append(main(line))
        elif os.environ["RANK"] == "0":
            only(Path(line[1]), Path(line[2]), int(line[3]))
    Path(f"{plan}.{os.environ['RANK']}").write_text(json.dumps(statuses))
