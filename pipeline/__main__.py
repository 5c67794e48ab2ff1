"""`python -m pipeline <subcommand>`: what runs in the container.

python -m pipeline fit --config pipeline/configs/digits.yaml --run_dir runs/one
torchrun --nproc_per_node 2 -m pipeline fit --config pipeline/configs/digits.yaml --run_dir runs/two
python -m pipeline test --run_dir runs/one
python -m pipeline summary --config pipeline/configs/digits.yaml --max_depth -1
python -m pipeline verify --run_dir runs/one
python -m pipeline explain_resume --run_dir runs/one --world_size 4
python -m pipeline prune --run_dir runs/one --keep_last 2 --dry_run true
python -m pipeline probe s3://bucket/folder
"""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
