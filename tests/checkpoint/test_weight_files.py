"""Weights that are given as a checkpoint are told their flag; checkpoints of plain Lightning resume."""

import io
import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.checkpoint.commit import select
from pipeline.checkpoint.weight_files import locate_weights, read_weights
from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended, assert_one_message
from tests.support.models import Regression
from tests.support.resumes import state
from tests.support.runs import FIT, ROWS
from tests.support.web_host import Host

App = Callable[..., Ended]


WEIGHTS: dict[str, Callable[[Path], object]] = {
    "a state_dict": lambda path: torch.save(Regression().state_dict(), path),
    "a state_dict below a key": lambda path: torch.save({"state_dict": Regression().state_dict()}, path),
    "safetensors": lambda path: save_file(Regression().state_dict(), path),
}


@pytest.mark.parametrize("subcommand", ["fit", "test", "validate", "predict"])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_are_given_as_a_checkpoint_are_told_their_flag(
    app: App, tmp_path: Path, kind: str, subcommand: str
) -> None:
    WEIGHTS[kind](tmp_path / "x.pt")
    more = () if subcommand == "validate" else ("--run_dir", tmp_path / "run")
    ended = app(subcommand, *ROWS[:-2], "--ckpt_path", tmp_path / "x.pt", *more)
    assert ended.status == 2, ended.err
    assert "no Lightning checkpoint" in ended.err
    assert f"--weights {tmp_path / 'x.pt'}" in ended.err


def test_a_checkpoint_of_weights_alone_starts_no_resume_but_a_training(app: App, tmp_path: Path, theirs: Path) -> None:
    ended = app(*FIT, "--ckpt_path", theirs / "weights_only.ckpt", "--run_dir", tmp_path / "run")
    assert_one_message(ended, "holds weights alone (save_weights_only), so training cannot resume from it")
    assert app(*FIT, "--weights", theirs / "weights_only.ckpt", "--run_dir", tmp_path / "run").status == 0


def test_a_checkpoint_of_plain_lightning_resumes_as_lightning_would(app: App, tmp_path: Path, theirs: Path) -> None:
    before = torch.load(theirs / "theirs.ckpt", weights_only=True)["global_step"]
    flags = ("--ckpt_path", theirs / "theirs.ckpt", "--run_dir", tmp_path, "--trainer.max_epochs=3")
    ended = app("fit", "--model=tests.support.models.Regression", "--data=tests.support.models.Own", *flags)
    assert ended.status == 0, ended.err
    found = state(str(tmp_path))
    assert (found["epoch"], found["global_step"]) == (3, before // 2 * 3)
    assert {int(each["step"]) for each in found["optimizer_states"][0]["state"].values()} == {before // 2 * 3}


def test_a_run_directory_as_a_checkpoint_says_what_to_give(app: App, tmp_path: Path) -> None:
    assert app(*FIT, "--trainer.max_epochs=1", "--run_dir", tmp_path / "first").status == 0
    ended = app(*FIT, "--ckpt_path", tmp_path / "first", "--run_dir", tmp_path / "run")
    assert_one_message(ended, "is a run directory: resume it by --run_dir, start from its weights by --weights")
    (tmp_path / "none" / "checkpoints").mkdir(parents=True)
    ended = app(*FIT, "--weights", tmp_path / "none", "--run_dir", tmp_path / "run")
    assert_one_message(ended, "has no committed checkpoint")


@pytest.mark.parametrize("place", ["absolute", "relative", "s3"])
def test_a_checkpoint_of_a_run_is_compared_with_its_commit_record(
    app: App, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    url = str(tmp_path / "run")
    if place == "s3":
        url = f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex[:12]}/run"
    assert app(*FIT, "--trainer.max_epochs=1", "--run_dir", url).status == 0
    run = RunDir(url)
    (name,) = (RunDir.checkpoint(step) for step in run.steps()["ckpt"])
    if place == "relative":
        monkeypatch.chdir(run.path + "/checkpoints/..")
        named = name
    else:
        named = run.url_of(name)
    record = select(run)
    assert locate_weights(named) == (named, record.sha256)
    if place != "s3":  # there the node would go on with its good copy
        with read_weights(*locate_weights(named)) as found:
            assert "layers.0.weight" in found
    data = run.read(name)
    assert data is not None
    run.write(name, data[:-30] + b"x" + data[-29:])
    ended = app(*FIT, "--weights", run.url_of(name), "--run_dir", tmp_path / "other")
    assert_one_message(ended, record.sha256.removeprefix("sha256:"))


def test_an_index_of_other_things_is_no_index_of_weights(app: App, tmp_path: Path) -> None:
    (tmp_path / "x.index.json").write_text(json.dumps([1]))
    assert_one_message(app(*FIT, "--weights", tmp_path / "x.index.json", "--run_dir", tmp_path / "r"), "no weight_map")


@pytest.mark.parametrize(
    "part",
    [
        "../other.pt",
        "sub/../../other.pt",
        "{there}/other.pt",
        "file://{there}/other.pt",
        "memory:other.pt",
        "..",
        "a\\b",
    ],
)
def test_an_index_that_names_a_part_outside_its_folder_is_refused(app: App, tmp_path: Path, part: str) -> None:
    torch.save(Regression().state_dict(), tmp_path / "other.pt")
    (tmp_path / "hub").mkdir()
    named = part.format(there=tmp_path)
    index = tmp_path / "hub" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"layers.0.weight": named}}))
    ended = app(*FIT, "--weights", index, "--run_dir", tmp_path / "run")
    assert_one_message(ended, "the parts must be plain file names, of files in the folder of the index")


def test_a_web_host_is_asked_for_the_file_once_and_for_no_listing() -> None:
    host, file = Host(), io.BytesIO()
    torch.save(Regression().state_dict(), file)
    host.data = file.getvalue()
    try:
        for _ in range(2):
            with read_weights(*locate_weights(host.url)) as found:
                assert torch.equal(found["layers.0.weight"], Regression().state_dict()["layers.0.weight"]) is False
                assert found["layers.0.weight"].shape == (8, 4)
        assert host.requests.count("GET") == 1
    finally:
        host.gone()
