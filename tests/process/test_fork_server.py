"""The standby's own side: it ends with its agent, answers what it cannot do, and tells code that has changed."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.process import fork_server
from pipeline.process.fork_server import OPTION, READY
from tests.support.commands import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are standbys on Linux only")


@pytest.fixture
def standby() -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A standby without an agent, and the agent's end of its socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    option = f"{OPTION}={theirs.fileno()}"
    line = [sys.executable, "-X", option, "-m", "tests.support.process_state", "exit", "0"]
    with ours, theirs:
        process = subprocess.Popen(line, cwd=ROOT, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
        theirs.close()
        assert ours.recv(100) == READY.encode()
        yield process, ours
        process.kill()
        process.communicate()


def test_it_ends_in_silence_when_its_agent_has(standby: tuple[subprocess.Popen[bytes], socket.socket]) -> None:
    process, channel = standby
    channel.close()
    assert process.communicate(timeout=20)[1] == b""
    assert process.returncode == 0


def test_it_holds_no_stream_of_its_agents(standby: tuple[subprocess.Popen[bytes], socket.socket]) -> None:
    process, _ = standby
    assert {str(Path(f"/proc/{process.pid}/fd/{fd}").readlink()) for fd in range(3)} == {"/dev/null"}
    held = [Path(f"/proc/{process.pid}/fd/{fd.name}").readlink() for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
    assert len([path for path in held if "socket:" in str(path)]) == 1
    assert len(held) == 4


def test_a_file_that_is_edited_replaced_or_removed_has_changed(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("edited.py", "removed.py", "same.py")]
    for file in files:
        file.write_text("x = 1\n")
    known = {str(file): fork_server._version(str(file)) for file in files}
    assert fork_server._changed(known) == ""
    files[0].write_text("x = 1 + 1\n")
    assert fork_server._changed(known) == f"{files[0]} has changed"
    known[str(files[0])] = fork_server._version(str(files[0]))
    files[1].unlink()
    assert fork_server._changed(known) == f"{files[1]} has changed"


def test_the_files_of_all_imported_modules_are_known() -> None:
    assert fork_server.__file__ in fork_server._sources()


def test_threads_and_devices_that_a_fork_must_not_have_are_named() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, daemon=True)
    thread.start()
    found = fork_server._taken()
    done.set()
    thread.join()
    assert found.startswith("imports have started ")
