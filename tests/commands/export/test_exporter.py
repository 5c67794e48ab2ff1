"""An exported file computes what the model of the checkpoint computes, in each format and from each storage."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline.checkpoint.commit import select
from pipeline.commands.export.description import KEY
from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended, assert_one_message, torchrun
from tests.support.exported import Peculiar, of
from tests.support.runs import ROWS

App = Callable[..., Ended]
FORMATS = ("safetensors", "state_dict", "pt2", "onnx")
ENDINGS = {"safetensors": "safetensors", "state_dict": "pt", "pt2": "pt2", "onnx": "onnx"}


def export(app: App, run: object, kind: str, *more: object) -> Ended:
    return app("export", "--run_dir", run, "--format", kind, *more)


def exported(app: App, run: object, kind: str, *more: object) -> Path:
    """Export to the run's own folder, and return the file."""
    ended = export(app, run, kind, *more)
    assert ended.status == 0, ended.text
    found = re.search(r"^file +(.*?), ", ended.out, re.MULTILINE)
    assert found
    return Path(found[1])


def description(file: Path, kind: str) -> dict[str, Any]:
    """What a file says of itself."""
    if kind == "safetensors":
        with safe_open(file, "pt") as opened:
            text = opened.metadata()[KEY]
    elif kind == "state_dict":
        text = Path(f"{file}.json").read_text()
    elif kind == "pt2":
        text = (files := {f"{KEY}.json": ""}) and torch.export.load(file, extra_files=files) and files[f"{KEY}.json"]
    else:
        import onnx

        text = {each.key: each.value for each in onnx.load(file).metadata_props}[KEY]
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A regression of rows, trained for two epochs with two checkpoints."""
    from pipeline.cli import main

    url = tmp_path_factory.mktemp("export") / "run"
    flags = ("--trainer.max_epochs=2", "--checkpoints.every_n_epochs=1", "--checkpoints.monitor=val_loss")
    assert main(["fit", *ROWS, "--run_dir", str(url), *flags]) == 0
    return url


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_compared_named_and_left_alone_the_second_time(app: App, regression: Path, kind: str) -> None:
    record = select(RunDir(str(regression)), "latest")
    ended = export(app, regression, kind, "--checkpoint", "latest")
    assert ended.status == 0, ended.text
    assert re.search(r"batches of 4 and 3: greatest difference \S+, allowed \S+", ended.out)
    assert "forward(x: (4, 4) float32), batch[0] of data.val" in ended.out
    file = regression / "exports" / f"Regression-step-{record.step:08d}.{ENDINGS[kind]}"
    said = description(file, kind)
    assert said["schema"] == 1
    assert (said["run"], said["step"], said["checkpoint_sha256"]) == (str(regression), record.step, record.sha256)
    assert said["class_path"] == "tests.support.models.Regression"
    assert {"python", "torch", "lightning"} <= said["versions"].keys()
    before = file.stat().st_mtime_ns
    assert "was there already" in export(app, regression, kind, "--checkpoint", "latest").out
    assert file.stat().st_mtime_ns == before


def test_the_files_are_read_by_those_whose_format_it_is(app: App, regression: Path) -> None:
    import onnxruntime

    from tests.support.models import Regression

    x = torch.randn(6, 4)
    plain = Regression()
    plain.load_state_dict(load_file(exported(app, regression, "safetensors")))
    with torch.no_grad():
        expected = plain.eval()(x)
    loaded = Regression()
    loaded.load_state_dict(torch.load(exported(app, regression, "state_dict"), weights_only=True))
    assert torch.equal(loaded.eval()(x), expected)
    graph = torch.export.load(exported(app, regression, "pt2")).module()
    torch.testing.assert_close(graph(x), expected)
    session = onnxruntime.InferenceSession(str(exported(app, regression, "onnx")))
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), expected)


def test_a_part_is_exported_alone_and_a_typo_in_its_name_is_told_the_nearest(app: App, regression: Path) -> None:
    file = exported(app, regression, "onnx", "--submodule", "layers.3")
    assert file.name.startswith("Regression.layers.3-step-")
    assert description(file, "onnx")["submodule"] == "layers.3"
    ended = export(app, regression, "onnx", "--submodule", "layer.3")
    assert_one_message(ended, "submodule='layer.3' is no part of Regression; did you mean 'layers.3'")


def test_tied_compiled_frozen_and_oddly_laid_out_tensors_all_arrive(app: App, tmp_path: Path) -> None:
    assert app(*of("Peculiar"), "--run_dir", tmp_path).status == 0
    ended = export(app, tmp_path, "safetensors")
    assert ended.status == 0, ended.text
    assert "head.weight is embedding.weight" in ended.out
    file = next((tmp_path / "exports").glob("*.safetensors"))
    tensors = load_file(file)
    assert not [name for name in tensors if "_orig_mod" in name]
    assert "head.weight" not in tensors
    fresh = Peculiar()
    fresh.compiled = fresh.compiled._orig_mod  # type: ignore[assignment]
    fresh.load_state_dict({**tensors, "head.weight": tensors["embedding.weight"]})
    assert torch.equal(fresh.head.weight, tensors["embedding.weight"])
    for kind in ("state_dict", "pt2", "onnx"):
        exported(app, tmp_path, kind)


@pytest.mark.parametrize(
    ("model", "words"),
    [("Complicated", "_extra_state are objects"), ("Quantized", "cannot hold eighths (qint8)")],
)
def test_what_safetensors_cannot_hold_is_named_and_a_state_dict_keeps_it(
    app: App, tmp_path: Path, model: str, words: str
) -> None:
    assert app(*of(model), "--run_dir", tmp_path).status == 0
    assert_one_message(export(app, tmp_path, "safetensors"), words)
    assert "--format state_dict keeps" in export(app, tmp_path, "safetensors").err
    assert not (tmp_path / "exports").exists()
    assert exported(app, tmp_path, "state_dict").exists()


def test_bfloat16_weights_stay_bfloat16(app: App, tmp_path: Path) -> None:
    flags = ("--trainer.precision=bf16-true",)
    assert app("fit", *ROWS, *flags, "--trainer.max_epochs=1", "--run_dir", tmp_path).status == 0
    assert {each.dtype for each in load_file(exported(app, tmp_path, "safetensors")).values()} == {torch.bfloat16}
    assert exported(app, tmp_path, "pt2").exists()
    ended = export(app, tmp_path, "onnx")
    assert ended.status in (0, 2), ended.text
    assert ended.status == 0 or "onnxruntime" in ended.err


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_a_forward_that_cannot_be_traced_says_where_and_what_still_works(app: App, tmp_path: Path, kind: str) -> None:
    assert app(*of("Branching"), "--run_dir", tmp_path).status == 0
    ended = export(app, tmp_path, kind)
    assert_one_message(ended, "forward of Branching cannot be traced")
    assert re.search(r"exported\.py:\d+ in forward", ended.err)
    assert "--format safetensors" in ended.err
    assert not (tmp_path / "exports").exists()
    assert export(app, tmp_path, "safetensors").status == 0


def test_a_file_that_computes_something_else_is_not_written(app: App, tmp_path: Path) -> None:
    assert app(*of("Noisy"), "--run_dir", tmp_path).status == 0
    ended = export(app, tmp_path, "onnx")
    assert_one_message(ended, "does not compute the same as the module")
    assert "draws random numbers also in eval mode" in ended.err
    assert not (tmp_path / "exports").exists()


def test_parts_that_no_checkpoint_holds_come_from_the_constructor_and_are_named(app: App, tmp_path: Path) -> None:
    assert app(*of("Adapted"), "--run_dir", tmp_path).status == 0
    ended = export(app, tmp_path, "safetensors")
    assert ended.status == 0, ended.text
    assert "backbone.weight, backbone.bias" in ended.out
    (file,) = (tmp_path / "exports").iterdir()
    assert torch.equal(load_file(file)["backbone.weight"], torch.full((3, 4), 0.5))


def test_layers_that_are_made_late_are_there(app: App, tmp_path: Path) -> None:
    assert app(*of("LateLayers"), "--run_dir", tmp_path).status == 0
    assert {"first.weight", "second.weight"} <= load_file(exported(app, tmp_path, "safetensors")).keys()
    assert exported(app, tmp_path, "pt2").exists()


def test_the_same_export_works_from_s3_and_to_s3(app: App, s3: str, tmp_path: Path) -> None:
    url = f"{s3}/{tmp_path.name}-{os.getpid()}/run"
    assert app("fit", *ROWS, "--trainer.max_epochs=1", "--run_dir", url).status == 0
    for kind in ("safetensors", "state_dict"):
        ended = export(app, url, kind)
        assert ended.status == 0, ended.text
        assert "was there already" in export(app, url, kind).out
    names = RunDir(url).names("exports")
    assert sorted(name.partition(".")[2] for name in names) == ["pt", "pt.json", "safetensors"]
    ended = export(app, url, "safetensors", "--output", tmp_path / "here.safetensors")
    assert ended.status == 0, ended.text
    assert load_file(tmp_path / "here.safetensors").keys() == {
        f"layers.{at}.{name}" for at in (0, 3) for name in ("weight", "bias")
    }


@pytest.mark.slow
def test_what_two_processes_trained_is_exported(app: App, tmp_path: Path) -> None:
    ended = torchrun(2, "-m", "pipeline", "fit", *ROWS, "--trainer.max_epochs=1", "--run_dir", tmp_path)
    assert ended.status == 0, ended.text
    for kind in FORMATS:
        assert description(exported(app, tmp_path, kind), kind)["step"] == 4
