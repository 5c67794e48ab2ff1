"""One per node: torchrun's arguments and behaviour, but it ends as the process that failed first did.

    python -m pipeline.agent --nproc_per_node 2 -m pipeline fit --config pipeline/configs/digits.yaml --run_dir runs/two

torchrun itself turns every status of a process into 1 and prints a traceback of its own even for a user's mistake,
which the process has explained already.
"""

import logging
import signal
import socket
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from pipeline.errors import USER_MUST_CHANGE


def main(arguments: Sequence[str]) -> int:
    """Run a node's processes to their end.

    Returns:
        0, or the status of the process that failed first; 128 and its number where a signal ended it.
    """
    # What torch's agent says of failures is said below in one line; of a peer's early end nobody need hear.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run(parse_args(list(arguments)))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == USER_MUST_CHANGE:
            return USER_MUST_CHANGE
        status = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        how = f"status {status}" if failure.exitcode > 0 else signal.Signals(-failure.exitcode).name
        print(f"rank {rank} on {socket.gethostname()} ended with {how}", file=sys.stderr)  # noqa: T201
        return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
