"""What a process writes down about its failure, and what is made of a file that says something else."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch.distributed as dist

from pipeline.process.error_file import guarded, is_lost_peer, parse, read_report, write_report
from tests.support.commands import ROOT, command, torchrun


def test_a_report_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = str(tmp_path / "error.json")
    write_report(path, 7, "ValueError: no", "Traceback ...", lost_peer=True)
    report = read_report(path)
    assert report is not None
    assert (report.status, report.message, report.traceback, report.lost_peer) == (
        7,
        "ValueError: no",
        "Traceback ...",
        True,
    )


def test_torchs_own_form_is_read_too() -> None:
    content = {"message": {"message": "RuntimeError: a\nb", "extraInfo": {"py_callstack": "T", "timestamp": "12"}}}
    report = parse(content)
    assert report is not None
    assert (report.status, report.message, report.time) == (None, "RuntimeError: a", 12.0)


@pytest.mark.parametrize("content", [None, [], "x", {}, {"message": 3}, {"message": None}])
def test_anything_else_says_nothing(tmp_path: Path, content: object) -> None:
    assert parse(content) is None
    (tmp_path / "torn").write_text('{"message": ')
    assert read_report(str(tmp_path / "torn")) is None
    assert read_report(str(tmp_path / "missing")) is None


@pytest.mark.parametrize(
    "extra", [3, "x", {"timestamp": "soon"}, {"time": []}, {"time": None, "lost_peer": 1, "py_callstack": 4}]
)
def test_a_report_with_odd_fields_is_no_crash_of_its_reader(tmp_path: Path, extra: object) -> None:
    path = tmp_path / "error.json"
    path.write_text(json.dumps({"message": {"message": "m", "errorCode": "two", "extraInfo": extra}}))
    report = read_report(str(path))
    assert report is None or report.status is None


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:83] Timed out waiting 5000ms for recv operation"), True),
        (dist.DistNetworkError("The client socket has failed to connect"), True),
        (dist.DistStoreError("wait timeout after 300000ms, keys: /a"), True),
        (ConnectionError("Connection closed by peer"), False),
        (RuntimeError("my own: Connection closed by peer"), False),
        (RuntimeError("CUDA out of memory"), False),
        (ValueError("gloo: Connection closed by peer"), False),
    ],
)
def test_only_the_words_of_a_collective_are_a_lost_peer(error: Exception, lost: bool) -> None:
    assert is_lost_peer(raised(error)) == lost


def test_the_first_of_a_chain_decides() -> None:
    echo = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    assert not is_lost_peer(raised(echo, raised(ZeroDivisionError("mine"))))
    assert is_lost_peer(raised(ValueError("while cleaning up"), raised(echo)))


def test_without_an_agent_python_says_it_as_ever(tmp_path: Path) -> None:
    def fail() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guarded(fail, {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")})
    report = read_report(str(tmp_path / "error.json"))
    assert report is not None
    assert report.status == 1
    assert guarded(lambda: 2, {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")}) == 2
    report = read_report(str(tmp_path / "error.json"))
    assert report is not None
    assert report.status == 2


LOSES = """
    import os, signal, sys, time
    from datetime import timedelta
    import torch, torch.distributed as dist
    from pipeline.process.error_file import is_lost_peer
    dist.init_process_group("gloo", timeout=timedelta(seconds=3))
    rank = dist.get_rank()
    dist.all_reduce(torch.ones(1))
    if rank == 1:
        if sys.argv[1] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(8)
        os._exit(0)
    try:
        dist.all_reduce(torch.ones(1))
    except Exception as error:
        print("lost" if is_lost_peer(error) else f"not known: {error}", flush=True)
    os._exit(0)
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", ["killed", "stands still"])
def test_what_gloo_really_raises_is_known(tmp_path: Path, how: str) -> None:
    (tmp_path / "loses.py").write_text(textwrap.dedent(LOSES))
    ended = torchrun(2, tmp_path / "loses.py", how, env={"PYTHONPATH": str(ROOT)})
    assert "lost\n" in ended.out, ended.text


def test_it_needs_neither_torch_nor_lightning() -> None:
    modules = "pipeline.process.error_file, pipeline.process.preemption"
    program = f"import sys, {modules}; assert not {{'torch', 'lightning'}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_an_exit_that_waits_for_no_thread_runs_what_is_registered_for_the_end() -> None:
    """By a private function of CPython, which a new version may not have."""
    program = (
        "import atexit, threading, time\n"
        "from pipeline.process.error_file import exit_now\n"
        "atexit.register(print, 'registered')\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "exit_now(7)"
    )
    ended = command(sys.executable, "-c", program)
    assert (ended.status, ended.out) == (7, "registered\n"), ended.text
