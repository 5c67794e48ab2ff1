"""Whatever a file of a run holds, or is, a start ends well or with one sentence that names it; nothing is lost."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import Ended
from tests.support.runs import FIT

App = Callable[..., Ended]
COMMANDS: dict[str, tuple[str, ...]] = {
    "fit": (*FIT, "--trainer.max_epochs=3"),
    "test": ("test", "--data.test=tests.support.models.Rows"),
    "explain_resume": ("explain_resume",),
    "verify": ("verify",),
    "prune": ("prune", "--keep_last=5"),
}
SOME = [
    name if name == "explain_resume" else pytest.param(name, marks=pytest.mark.slow)
    for name in ("fit", "test", "explain_resume", "verify", "prune")
]
FILES = ("fit.yaml", "attempts/0001.json", "checkpoints/step-00000014.json", "checkpoints/step-00000014.ckpt")
CONTENTS = (
    b"",
    b"\x00",
    b"\xff\xfe",
    b"[]",
    b"a: 2020-99-99\n",
    b"model: text\ntrainer: {}\n",
    b"trainer: {accelerator: cpu, precision: null}\nmodel: {class_path: 3}\n",
    b"trainer: {accelerator: [], precision: 3}\nmodel: {class_path: no.such.Model}\ndata: {class_path: x}\n",
    b'{"schema": 1}',
    b'{"schema": 1, "ended": [], "attempt": "x", "reached_step": "y", "goodput": 7, "last_step": {}, "step": 14}',
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, trained once."""
    return tmp_path_factory.mktemp("trained") / "run"


def ends_well_or_says_why(app: App, trained: Path, folder: Path, name: str, change: Callable[[Path], object]) -> None:
    """Change a copy of a run, and call a command."""
    if not trained.exists():
        assert app(*FIT, "--run_dir", trained).status == 0
    shutil.copytree(trained, folder)
    change(folder)
    whole = sorted(folder.glob("checkpoints/step-00000007.*"))
    kept = [path.read_bytes() for path in whole]
    ended = app(*COMMANDS[name], "--run_dir", folder)
    assert ended.status in ((0, 1, 2) if name == "verify" else (0, 2)), ended.text  # 1: a proof does not hold
    assert "Traceback" not in ended.text
    assert ended.status != 2 or "error: " in ended.err
    assert kept == [path.read_bytes() for path in whole], "of a step that is not damaged"


def folder_for(name: str) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir(parents=True)

    return change


def file_for(name: str) -> Callable[[Path], object]:
    def change(run: Path) -> None:
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).write_text("x")

    return change


@pytest.mark.parametrize("command", SOME)
@pytest.mark.parametrize("name", [*FILES, "test.yaml", "attempts/0002.json", "lease.json"])
def test_a_folder_in_the_place_of_a_file(app: App, trained: Path, tmp_path: Path, name: str, command: str) -> None:
    ends_well_or_says_why(app, trained, tmp_path / "run", command, folder_for(name))


@pytest.mark.parametrize("command", SOME)
@pytest.mark.parametrize("name", ["attempts", "evaluation"])
def test_a_file_in_the_place_of_a_folder(app: App, trained: Path, tmp_path: Path, name: str, command: str) -> None:
    ends_well_or_says_why(app, trained, tmp_path / "run", command, file_for(name))


@pytest.mark.parametrize("command", SOME[:3])
@pytest.mark.parametrize("name", FILES[:3])
def test_a_file_with_another_content(app: App, trained: Path, tmp_path: Path, name: str, command: str) -> None:
    for number, content in enumerate(CONTENTS):
        folder = tmp_path / f"{number}"
        ends_well_or_says_why(app, trained, folder, command, lambda run: (run / name).write_bytes(content))  # noqa: B023


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", ["test", "explain_resume"])
@pytest.mark.parametrize("name", FILES[:3])
def test_a_file_with_one_flipped_bit(app: App, trained: Path, tmp_path: Path, name: str, command: str) -> None:
    chance = random.Random(17)

    def flip(run: Path) -> None:
        data = bytearray((run / name).read_bytes())
        at = chance.randrange(8 * len(data))
        data[at // 8] ^= 1 << (at % 8)
        (run / name).write_bytes(bytes(data))

    for number in range(100):
        ends_well_or_says_why(app, trained, tmp_path / f"{number}", command, flip)
