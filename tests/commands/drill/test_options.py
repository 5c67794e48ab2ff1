"""What cannot be drilled is refused before anything is trained."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import DIGITS, Ended

App = Callable[..., Ended]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--faults=0", "--nodes=0"), "faults=0 must be >= 1"),
        (("--nodes=1", "--resize=true"), "resize=true with nodes=1"),
        (("--args=--run_dir=x",), "run_dir belongs to the drill"),
        (("--args='",), "No closing quotation"),
        (("--save_every=0",), "save_every=0 must be > 0 seconds"),
        (("--kinds=kill_rank,murder",), "murder must be of term_rank, term_agent"),
    ],
)
def test_a_mistake_gets_one_clear_message(app: App, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    ended = app("drill", "--config=pipeline/configs/digits.yaml", "--run_dir", tmp_path / "drill", *arguments)
    assert ended.status == 2, ended.text
    assert said in ended.err
    assert "Traceback" not in ended.text
    assert not (tmp_path / "drill").exists()


@pytest.mark.parametrize("name", ["drill.json", "fit.yaml", "checkpoints"])
def test_a_directory_that_holds_a_run_or_a_drill_is_refused(app: App, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    ended = app("drill", "--config", DIGITS, "--run_dir", tmp_path)
    assert ended.status == 2
    assert f"holds {name}: a drill never writes over a run. Give another --run_dir" in ended.err
