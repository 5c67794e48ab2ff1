"""States in the memory of a node: what keeping one costs, and how fast a node that lacks one gets it from a peer."""

import secrets
import uuid

import torch

from pipeline.checkpoint.commit import read_record
from pipeline.checkpoint.load import fetch_verified
from pipeline.process.peer_transfer import PeerServer, digest, fetch
from pipeline.process.topology import Topology
from pipeline.run.run_dir import RunDir
from pipeline.training.memory_checkpoints import MemoryCheckpoints
from tests.benchmarks.processes import forked
from tests.benchmarks.saving import COPY, STEP, commit, copy, record, seconds, state
from tests.benchmarks.subject import OURS, Bar, Contenders, Context, Reading, subject
from tests.support.host_memory import host_memory

STORAGE = "a verified fetch from the storage"
STOPPED = "s until training continues"
HELD = "x the state in host memory"


def keep(megabytes: int) -> Reading:
    """Keep states until both places of the memory are in use, and one more."""
    held, model = state(megabytes), torch.nn.Linear(1, 1)
    with host_memory() as memory:
        keeps = MemoryCheckpoints(memory, Topology(0, 0, 1, 1, 0, 1), {"attempt": 1})
        keeps.begin(model)
        for step in (1, 2):
            keeps.keep_saved(model, held, record(step))
        stopped = seconds(lambda: keeps.keep_saved(model, held, record(3)))
        taken = sum(each.bytes for each in memory.states())
    return {STOPPED: stopped, HELD: taken / megabytes / 1e6}


def copied(megabytes: int) -> Reading:
    return {STOPPED: copy("", megabytes)["s until training continues"]}


@subject("memory_keep", unit="s", reference=COPY, bars=(Bar(OURS, HELD, limit=2.2),), rounds=(1, 3, 5))
def memory_keep(context: Context) -> Contenders:
    """A state of 400 MB (40 MB if quick) kept in the host memory of a node."""
    megabytes, log = context.pick(1, 40, 400), context.folder / "log.txt"
    return {
        OURS: lambda: forked(keep, megabytes, log=log),
        COPY: lambda: forked(copied, megabytes, log=log),
    }


def from_peer(megabytes: int) -> Reading:
    """Get a state over the loopback: both nodes hash it, on the cores of one machine."""
    held, secret = state(megabytes), secrets.token_bytes(32)
    with host_memory() as giving, host_memory() as taking:
        with giving.writing() as (file, hold):
            torch.save(held, file)
            hold({})
        (found,) = giving.states()
        path = giving.path(found)

        def get() -> None:
            expected = digest(path, found.bytes)
            with PeerServer(path, found.bytes, secret, "127.0.0.1") as server, taking.writing() as (file, hold):
                fetch(server.address, secret, found.bytes, expected, file.fileno())
                file.seek(found.bytes)
                hold({})

        get()  # both have pages there by now, as nodes that have kept states have
        return {"wall": seconds(get)}


def from_storage(url: str) -> Reading:
    run = RunDir(url)
    small, large = (read_record(run, step) for step in (1, STEP))
    assert small is not None
    assert large is not None
    fetch_verified(run, small)  # makes clients and connections
    return {"wall": seconds(lambda: fetch_verified(run, large))}


@subject("memory_fetch", unit="s", reference=STORAGE, bars=(Bar(OURS, "wall", 5),), rounds=(1, 3, 5), stores=True)
def memory_fetch(context: Context) -> Contenders:
    """A state of 400 MB (40 MB if quick) for a node that lacks it, verified."""
    megabytes, log = context.pick(1, 40, 400), context.folder / "log.txt"

    def storage() -> Reading:
        url = f"{context.url}/{uuid.uuid4().hex[:8]}"
        forked(commit, url, megabytes, log=log)
        found: Reading = forked(from_storage, url, log=log)
        return found

    return {OURS: lambda: forked(from_peer, megabytes, log=log), STORAGE: storage}
