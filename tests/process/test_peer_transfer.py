"""What a node gives to another one of its launch: all of it, verified, and to nobody else."""

import hmac
import os
import random
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.process import peer_transfer
from pipeline.process.peer_transfer import PeerServer, TransferFailed, digest, fetch, own_address

SECRET = bytes(range(32))
PART = 1000


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_transfer, "PART", PART)


@pytest.fixture
def received(tmp_path: Path) -> Iterator[int]:
    """An open file to fetch into."""
    file = os.open(tmp_path / "received", os.O_RDWR | os.O_CREAT)
    yield file
    os.close(file)


def given(folder: Path, size: int) -> Path:
    path = folder / "given"
    path.write_bytes(random.Random(size).randbytes(size))
    return path


@pytest.mark.parametrize("size", [1, PART - 1, PART, PART + 1, 4 * PART, 9 * PART + 7])
def test_a_file_arrives_whole(tmp_path: Path, received: int, size: int) -> None:
    path = given(tmp_path, size)
    with PeerServer(str(path), size, SECRET, "127.0.0.1") as server:
        fetch(server.address, SECRET, size, digest(str(path), size), received)
    assert (tmp_path / "received").read_bytes() == path.read_bytes()


def test_several_nodes_fetch_at_once(tmp_path: Path) -> None:
    path, files = given(tmp_path, 20 * PART), [tmp_path / str(node) for node in range(5)]
    expected = digest(str(path), 20 * PART)
    with PeerServer(str(path), 20 * PART, SECRET, "127.0.0.1") as server, ThreadPoolExecutor() as pool:

        def get(file: Path) -> None:
            with open(file, "wb") as opened:
                fetch(server.address, SECRET, 20 * PART, expected, opened.fileno())

        list(pool.map(get, files))
    assert {file.read_bytes() for file in files} == {path.read_bytes()}


def test_who_does_not_know_the_secret_gets_nothing(tmp_path: Path, received: int) -> None:
    path = given(tmp_path, PART)
    with PeerServer(str(path), PART, SECRET, "127.0.0.1") as server:
        with pytest.raises(TransferFailed, match=r"127.0.0.1:\d+: the connection was closed"):
            fetch(server.address, bytes(32), PART, digest(str(path), PART), received)
        fetch(server.address, SECRET, PART, digest(str(path), PART), received)


def test_bytes_that_are_others_are_found(tmp_path: Path, received: int) -> None:
    path = given(tmp_path, 3 * PART)
    expected = digest(str(path), 3 * PART)
    changed = bytearray(path.read_bytes())
    changed[2 * PART] ^= 1
    path.write_bytes(changed)
    with (
        PeerServer(str(path), 3 * PART, SECRET, "127.0.0.1") as server,
        pytest.raises(TransferFailed, match="its bytes are others than they should be"),
    ):
        fetch(server.address, SECRET, 3 * PART, expected, received)


@pytest.mark.parametrize("start_and_length", [(0, PART + 1), (PART, 1), (2**63, 2**63), (0, 2**64 - 1)])
def test_a_range_that_is_not_there_is_refused(tmp_path: Path, start_and_length: tuple[int, int]) -> None:
    path, asked = given(tmp_path, PART), struct.pack("!QQ", *start_and_length)
    with PeerServer(str(path), PART, SECRET, "127.0.0.1") as server, socket.create_connection(server.address) as peer:
        nonce = peer.recv(16, socket.MSG_WAITALL)
        peer.sendall(hmac.digest(SECRET, nonce + asked, "sha256") + asked)
        assert peer.recv(1) == b""


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 48, b"x" * 10_000])
def test_whoever_else_knocks_disturbs_nobody(tmp_path: Path, received: int, said: bytes) -> None:
    path = given(tmp_path, PART)
    with PeerServer(str(path), PART, SECRET, "127.0.0.1") as server, socket.create_connection(server.address) as other:
        other.sendall(said)
        fetch(server.address, SECRET, PART, digest(str(path), PART), received)


def test_a_proof_is_good_for_one_request(tmp_path: Path) -> None:
    path, asked = given(tmp_path, PART), struct.pack("!QQ", 0, 10)
    with PeerServer(str(path), PART, SECRET, "127.0.0.1") as server, socket.create_connection(server.address) as peer:
        proof = hmac.digest(SECRET, peer.recv(16, socket.MSG_WAITALL) + asked, "sha256")
        peer.sendall(proof + asked)
        assert peer.recv(10, socket.MSG_WAITALL) == path.read_bytes()[:10]
        peer.recv(16, socket.MSG_WAITALL)
        peer.sendall(proof + asked)
        assert peer.recv(1) == b""


def test_a_peer_that_is_gone_is_named(tmp_path: Path, received: int) -> None:
    path = given(tmp_path, PART)
    with PeerServer(str(path), PART, SECRET, "127.0.0.1") as server:
        address = server.address
    with pytest.raises(TransferFailed, match=f"{address[0]}:{address[1]}: "):
        fetch(address, SECRET, PART, digest(str(path), PART), received)


def test_the_address_is_one_that_leads_to_the_store() -> None:
    assert own_address({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}) == "127.0.0.1"
    assert own_address({"MASTER_ADDR": "::1", "MASTER_PORT": "29500"}) == "::1"
