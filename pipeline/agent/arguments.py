"""The command line of the agent: torchrun's options under torchrun's names, parsed without importing torch."""

import argparse
import os
import re
from typing import Any

_OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    # Name, default, type, help. A default of False makes a flag.
    ("nnodes", "1:1", str, "nodes of the job: N, or MIN:MAX for an elastic one"),
    ("nproc_per_node", "1", str, "workers of each node: a number, auto, cpu, gpu or xpu"),
    ("rdzv_backend", "static", str, "c10d is the only rendezvous that is served"),
    ("rdzv_endpoint", "", str, "HOST:PORT of node 0"),
    ("rdzv_id", "none", str, "id of the job"),
    ("rdzv_conf", "", str, "KEY=VALUE,...: join_timeout, last_call_timeout, keep_alive_interval, ... in seconds"),
    ("standalone", False, bool, "a single node, with a rendezvous of its own on a free port"),
    ("max_restarts", 3, int, "restarts of all workers after a crash (torchrun: 0)"),
    ("monitor_interval", 0.1, float, "seconds between two looks at the workers"),
    ("start_method", "spawn", str, "ignored: a worker is a program of its own"),
    ("event_log_handler", "null", str, "torch's handler of elastic events"),
    ("role", "default", str, "role of the workers"),
    ("module", False, bool, "run the script as a Python module, like python -m"),
    ("no_python", False, bool, "run the script directly instead of by Python"),
    ("run_path", False, bool, "ignored: a worker is a program of its own"),
    ("log_dir", None, str, "folder for log files"),
    ("redirects", "0", str, "streams that go to log files: 1 stdout, 2 stderr, 3 both; or RANK:STREAMS,..."),
    ("tee", "0", str, "streams that go to log files and to the console, as for --redirects"),
    ("local_ranks_filter", "", str, "local ranks whose output is shown on the console"),
    ("duplicate_stdout_filters", [], list, "words whose stdout lines go to a log file of their own, comma-separated"),
    ("duplicate_stderr_filters", [], list, "the same for stderr"),
    ("node_rank", 0, int, "ignored: the rendezvous assigns it"),
    ("master_addr", "127.0.0.1", str, "ignored: the rendezvous assigns it"),
    ("master_port", None, int, "ignored: the rendezvous assigns it"),
    ("local_addr", None, str, "address of this node for the others"),
    ("logs_specs", None, str, "entry point of torchrun.logs_specs"),
    ("numa_binding", None, str, "bind workers to the CPUs near their GPU: node, socket, exclusive, core-complex"),
    ("signals_to_handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT", str, "signals that stop the agent, beside SIGUSR1"),
    ("shutdown_timeout", None, int, "seconds that workers have between SIGTERM and SIGKILL (30)"),
    ("virtual_local_rank", False, bool, "LOCAL_RANK=0 and one visible GPU for each worker"),
    ("standby", "auto", str, "fork workers from a process that has imported all: true, false, auto (no GPU)"),
    ("preflight", "", str, "arguments of a preflight that goes before the workers, in one string"),
)
_SHORT = {"module": "-m", "redirects": "-r", "tee": "-t"}


def parser() -> argparse.ArgumentParser:
    """Return the parser. As in torchrun, PET_<NAME> in the environment is the default of an option."""
    made = argparse.ArgumentParser(
        prog="python -m pipeline.agent",
        description="Run the workers of one node of a job: torchrun's options, and --preflight.",
    )
    for name, default, kind, text in _OPTIONS:
        flags = [_SHORT[name]] if name in _SHORT else []
        flags += dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
        value = os.environ.get(f"PET_{name.upper()}", default)
        if kind is bool:
            made.add_argument(*flags, action="store_true", default=bool(int(value)), help=text)
        else:
            made.add_argument(*flags, type=_words if kind is list else kind, default=value, help=text)
    made.add_argument("training_script", help="program of each worker")
    made.add_argument("training_script_args", nargs=argparse.REMAINDER, help="its arguments")
    return made


def _words(text: str) -> list[str]:
    """Split at commas; two of them stand for one that is meant."""
    return [word.replace(",,", ",") for word in re.split(r"(?<!,),(?!,)", text)]
