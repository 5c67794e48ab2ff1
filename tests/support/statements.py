"""Runs the statements that its argument holds: `python -m tests.support.statements "print(1)" ...`."""

import sys

if __name__ == "__main__":
    exec(sys.argv[1])
