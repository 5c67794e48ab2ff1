"""`python -m pipeline <subcommand>`: what runs in the container.

python -m pipeline fit --config pipeline/configs/digits.yaml --run_dir runs/one
python -m pipeline.agent --nproc_per_node 2 -m pipeline fit --config pipeline/configs/digits.yaml --run_dir runs/two
python -m pipeline test --run_dir runs/one
python -m pipeline summary --config pipeline/configs/digits.yaml --max_depth -1
python -m pipeline verify --run_dir runs/one
python -m pipeline explain_resume --run_dir runs/one --world_size 4
python -m pipeline prune --run_dir runs/one --keep_last 2 --dry_run true
python -m pipeline probe s3://bucket/folder
"""

import sys

from pipeline.process.error_file import guarded
from pipeline.process.preemption import Preemption


def run() -> int:
    """The command line of this process, which listens to signals from before torch is imported."""
    with Preemption() as preemption:
        from pipeline.cli import main  # noqa: PLC0415 - takes seconds, in which a signal must be heard

        return main(sys.argv[1:], preemption)


if __name__ == "__main__":
    sys.exit(guarded(run))
