"""`python -m pipeline {fit,validate,test,predict,summary,verify,explain_resume}`: what runs in the container.

python -m pipeline fit --config pipeline/configs/digits.yaml --run_dir runs/one
torchrun --nproc_per_node 2 -m pipeline fit --config pipeline/configs/digits.yaml --run_dir runs/two
python -m pipeline test --run_dir runs/one
python -m pipeline summary --config pipeline/configs/digits.yaml --max_depth -1
python -m pipeline verify --run_dir runs/one
python -m pipeline explain_resume --run_dir runs/one --world_size 4
"""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
