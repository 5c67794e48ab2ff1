"""A drill's parts: the plan of its faults, the outage, and a comparison that overlooks nothing."""

import hashlib
import json
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from pipeline.checkpoint.commit import newest, write_record
from pipeline.commands.drill.compare import Comparison, Trained, close, compare, ledger
from pipeline.commands.drill.notes import FOLDER, Noted, pace, set_pace
from pipeline.commands.drill.plan import Fault, Kind, plan
from pipeline.commands.drill.proxy import Proxy
from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended

App = Callable[..., Ended]
KINDS = tuple(Kind)
TINY = (
    *(
        "fit",
        "--model=tests.support.models.Regression",
        "--data=pipeline.data.DataModule",
        "--data.train=tests.support.models.Rows",
    ),
    *("--data.val=tests.support.models.Rows", "--data.batch_size=16", "--trainer.enable_model_summary=false"),
    *("--trainer.max_epochs=2", "--trainer.callbacks+=pipeline.commands.drill.notes.Notes"),
)


@pytest.mark.parametrize("seed", range(20))
def test_a_seed_always_makes_the_same_plan_in_which_each_kind_comes(seed: int) -> None:
    faults = plan(seed, 12, 60, KINDS, 3, 2)
    assert faults == plan(seed, 12, 60, KINDS, 3, 2)
    assert faults != plan(seed + 1, 12, 60, KINDS, 3, 2)
    assert [fault.number for fault in faults] == list(range(1, 13))
    assert set(Counter(fault.kind for fault in faults)) == set(KINDS)
    steps = [fault.step for fault in faults if fault.step is not None]
    assert steps == sorted(steps)
    assert 0 < steps[0] <= steps[-1] < 60
    assert all(fault.node < 3 and fault.process < 2 and 3 <= fault.seconds <= 6 for fault in faults)


def test_some_faults_come_while_processes_start_and_only_those_that_can() -> None:
    at_start: list[Fault] = []
    for seed in range(50):
        faults = plan(seed, 12, 60, KINDS, 2, 1)
        assert faults[0].step is not None
        at_start += [fault for fault in faults if fault.step is None]
    assert {fault.kind for fault in at_start} == set(KINDS) - {Kind.TRUNCATE, Kind.OUTAGE, Kind.RESIZE}


def test_fewer_faults_than_kinds_are_of_different_kinds() -> None:
    assert len({fault.kind for fault in plan(1, 4, 60, KINDS, 2, 1)}) == 4


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that answers with what it hears."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve(client: socket.socket) -> None:
            with client, suppress(ConnectionResetError):
                while data := client.recv(1024):
                    client.sendall(data)

        def accept() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def test_a_proxy_passes_on_cuts_and_restores(echo: int) -> None:
    def connected() -> socket.socket:
        return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)

    with Proxy("127.0.0.1", echo) as proxy:
        with connected() as client:
            client.sendall(b"hello")
            assert client.recv(1024) == b"hello"
            port = proxy.port
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                client.recv(1024)
        with pytest.raises(ConnectionRefusedError):
            connected()
        proxy.restore()
        assert proxy.port == port
        with connected() as client:
            client.sendall(b"again")
            client.shutdown(socket.SHUT_WR)
            assert client.makefile("rb").read() == b"again", "and its end is passed on"
    with pytest.raises(ConnectionRefusedError):
        connected()


@pytest.fixture
def trained(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """A run of 14 steps, with its notes."""
    noted = Noted(tmp_path / "notes", 1)
    monkeypatch.setenv(FOLDER, str(noted.folder))
    assert app(*TINY, "--run_dir", tmp_path / "run").status == 0
    noted.read()
    return Trained(RunDir(str(tmp_path / "run")), noted)


def test_notes_hold_each_step_once_with_its_loss(trained: Trained) -> None:
    notes = trained.noted.of[0]
    assert [note.step for note in notes] == list(range(1, 15))
    assert all(float.fromhex(note.losses[0]) > 0 for note in notes)
    assert len({note.losses for note in notes}) == 14
    assert {note.pid for note in notes} == {os.getpid()}
    assert trained.noted.repeated == 0


def test_steps_that_are_accumulated_hold_the_losses_of_all_their_batches(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = Noted(tmp_path / "notes", 1)
    monkeypatch.setenv(FOLDER, str(noted.folder))
    assert app(*TINY, "--trainer.accumulate_grad_batches=2", "--run_dir", tmp_path / "run").status == 0
    noted.read()
    assert [(note.step, len(note.losses)) for note in noted.of[0][:4]] == [(1, 2), (2, 2), (3, 2), (4, 1)]


def test_a_drilled_configuration_trains_outside_a_drill(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    assert app(*TINY, "--run_dir", tmp_path / "run").status == 0


def test_a_torn_note_is_read_once_it_is_whole(tmp_path: Path) -> None:
    noted = Noted(tmp_path, 1)
    line = json.dumps({"step": 1, "losses": ["0x1p+0"], "pid": 1, "at": 2.0}) + "\n"
    (tmp_path / "rank-0.jsonl").write_text(line + line[:9])
    assert (noted.read(), noted.highest, noted.repeated) == (1, 1, 0)
    (tmp_path / "rank-0.jsonl").write_text(line + line)
    assert (noted.read(), noted.highest, noted.repeated) == (2, 1, 1)
    assert pace(tmp_path) == 0
    set_pace(tmp_path, 0.25)
    assert pace(tmp_path) == 0.25


def copied(
    trained: Trained, folder: Path, change: Callable[[dict[str, Any]], object] = lambda checkpoint: None
) -> Trained:
    """The same run, in whose last checkpoint something is another value."""
    copytree(trained.run.path, folder)
    run = RunDir(str(folder))
    record = newest(run)
    assert record is not None
    path = folder / record.name
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    data = path.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    write_record(run, replace(record, bytes=len(data), sha256=digest), overwrite=True)
    return Trained(run, trained.noted)


def failed(comparisons: list[Comparison]) -> dict[str, str]:
    return {each.name: each.found for each in comparisons if not each.holds}


def test_a_run_is_equal_to_itself(trained: Trained, tmp_path: Path) -> None:
    found = compare(trained, copied(trained, tmp_path / "same"))
    assert failed(found) == {}
    assert {each.name for each in found} == {
        *("final step", "weights", "optimizers", "losses", "steps", "ledger", "verify"),
    }


def _flip(tensor: torch.Tensor) -> None:
    """Change the lowest bit of a tensor's first value."""
    tensor.view(-1).view(torch.uint8)[0] ^= 1


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda checkpoint: _flip(checkpoint["state_dict"]["layers.0.weight"]), "weights"),
        (lambda checkpoint: _flip(checkpoint["optimizer_states"][0]["state"][0]["exp_avg"]), "optimizers"),
        (lambda checkpoint: checkpoint["lr_schedulers"][0].update(last_epoch=7), "optimizers"),
        (lambda checkpoint: checkpoint.update(global_step=13), "final step"),
    ],
)
def test_one_bit_is_found(trained: Trained, tmp_path: Path, change: Callable[[Any], object], name: str) -> None:
    assert list(failed(compare(trained, copied(trained, tmp_path / "other", change)))) == [name]


def test_a_negative_zero_is_not_zero_and_nan_is_itself(trained: Trained, tmp_path: Path) -> None:
    def put(value: float) -> Callable[[Any], object]:
        return lambda checkpoint: checkpoint["state_dict"]["layers.0.bias"].fill_(value)

    zero, minus, nan = (copied(trained, tmp_path / str(value), put(value)) for value in (0.0, -0.0, float("nan")))
    assert "weights" in failed(compare(zero, minus))
    assert failed(compare(nan, nan)) == {}


def test_another_ledger_is_found(trained: Trained, tmp_path: Path) -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint["pipeline"]["ledger"][0]["consumed"][0] += 1

    assert set(failed(compare(trained, copied(trained, tmp_path / "other", change)))) == {"ledger", "verify"}


def test_a_damaged_checkpoint_is_found(trained: Trained, tmp_path: Path) -> None:
    other = copied(trained, tmp_path / "other")
    path = tmp_path / "other" / RunDir.checkpoint(7)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert list(failed(compare(trained, other))) == ["verify"]


def test_another_loss_and_a_missing_step_are_found(trained: Trained, tmp_path: Path) -> None:
    noted = Noted(tmp_path / "others", 1)
    others = Trained(trained.run, noted)
    notes = trained.noted.of[0]
    noted.of[0] = [*notes, replace(notes[4], pid=1)]
    assert failed(compare(trained, others)) == {}, "a repeated step is the same one"
    assert noted.repeated == 1
    noted.of[0] = [*notes, replace(notes[4], losses=("0x1.8p+0",))]
    found = failed(compare(trained, others))
    assert list(found) == ["losses"]
    assert "step 5 on rank 0: 0x1.8p+0, was " in found["losses"]
    noted.of[0] = [*notes[:8], *notes[9:]]
    assert failed(compare(trained, others)) == {"steps": "step 9 is missing"}
    noted.of[0] = [*notes, replace(notes[0], step=15)]
    assert failed(compare(trained, others)) == {"steps": "step 15 is one too many"}


def test_after_a_resize_weights_are_compared_for_closeness_and_losses_before_it(
    trained: Trained, tmp_path: Path
) -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        _flip(checkpoint["state_dict"]["layers.0.weight"])

    other = copied(trained, tmp_path / "other", change)
    noted = Noted(tmp_path / "others", 1)
    noted.of[0] = [replace(note, losses=("0x1p+0",)) if note.step > 7 else note for note in trained.noted.of[0]]
    found = compare(trained, Trained(other.run, noted), resized_at=7)
    assert failed(found) == {}
    assert "resized" in " ".join(each.found for each in found)
    account = {"epoch": 0, "seed": 0, "samples": 9, "closed": "complete", "withheld": [0, ""], "dropped": 0}
    padded, plain = ({**account, "consumed": [9 + more, "x"], "padded": more} for more in (1, 0))
    assert ledger([padded], [plain], resized=True).holds, "the tail is another one in another world"
    assert not ledger([padded], [plain]).holds
    assert not ledger([padded], [{**padded, "samples": 8}], resized=True).holds
    assert not ledger([padded], [], resized=True).holds
    left = {"weight": torch.zeros(3)}
    assert not close("weights", left, {"weight": torch.ones(3)}).holds
    assert not close("weights", left, {"other": torch.zeros(3)}).holds


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--faults=0", "--nodes=0"), "faults=0: allowed are 1 and more"),
        (("--nodes=1", "--resize=true"), "resize=true with nodes=1"),
        (("--args=--run_dir=x",), "run_dir belongs to the drill"),
        (("--args='",), "No closing quotation"),
    ],
)
def test_a_mistake_gets_one_clear_message(app: App, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    ended = app("drill", "--config=pipeline/configs/digits.yaml", "--run_dir", tmp_path / "drill", *arguments)
    assert ended.status == 2, ended.text
    assert said in ended.err
    assert "Traceback" not in ended.text
    assert not (tmp_path / "drill").exists()


def test_a_directory_that_holds_a_run_or_a_drill_is_refused(app: App, trained: Trained, tmp_path: Path) -> None:
    drill = ("drill", "--config=pipeline/configs/digits.yaml", "--run_dir")
    assert "holds checkpoints, fit.yaml" in app(*drill, trained.run.label).err
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "drill.json").write_text("{}")
    ended = app(*drill, tmp_path / "old")
    assert ended.status == 2
    assert "holds drill.json: a drill never writes over a run. Give another --run_dir" in ended.err
