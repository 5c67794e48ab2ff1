"""`python -m components.sweep`."""

import sys

from components.sweep.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
