"""What forward takes is found out: from predict_step, from a batch in the ways it may be meant, or from an example."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.commands.export.example_inputs import Inputs, _resized
from tests.support.commands import Ended, assert_one_message
from tests.support.exported import RUN, of

App = Callable[..., Ended]


def export(app: App, run: Path, *more: object) -> Ended:
    return app("export", "--run_dir", run, "--format", "pt2", *more)


def test_named_inputs_are_given_by_name(app: App, tmp_path: Path) -> None:
    data = ("--data=tests.support.exported.TextData", "--model=tests.support.exported.OfTexts")
    assert app("fit", *data, *RUN, "--run_dir", tmp_path).status == 0
    ended = export(app, tmp_path)
    assert ended.status == 0, ended.text
    assert "forward(input_ids: (4, 6) int64, mask: (4, 6) float32), input_ids, mask of data.train" in ended.out
    onnx = app("export", "--run_dir", tmp_path, "--format", "onnx")
    assert onnx.status == 0, onnx.text
    part = export(app, tmp_path, "--submodule", "head")
    assert "forward(input: (4, 8) float32)" in part.out, part.text


def test_a_part_is_watched_in_predict_step(app: App, tmp_path: Path) -> None:
    from tests.support.commands import DIGITS, QUICK

    assert app("fit", "--config", DIGITS, *QUICK, "--trainer.max_steps=1", "--run_dir", tmp_path).status == 0
    ended = export(app, tmp_path, "--submodule", "encoder")
    assert ended.status == 0, ended.text
    assert "forward(x: (4, 64) float32), as predict_step calls it with a batch of data.predict" in ended.out


def test_hooks_around_the_move_of_a_batch_and_setup_do_what_they_do(app: App, tmp_path: Path) -> None:
    assert app(*of("MovesItsBatches"), "--run_dir", tmp_path).status == 0
    ended = export(app, tmp_path)
    assert ended.status == 0, ended.text
    assert "forward(rows: (4, 4) float32), rows of data.test" in ended.out


def test_without_data_the_models_example_is_taken(app: App, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.write_text("here")
    data = ("--data=tests.support.exported.Gone", f"--data.marker={marker}")
    run = tmp_path / "run"
    model = ("--model=tests.support.exported.WithExample", *RUN)
    assert app("fit", *model, *data, "--run_dir", run).status == 0
    marker.unlink()
    ended = export(app, run)
    assert ended.status == 0, ended.text
    assert "of example_input_array" in ended.out


def test_a_model_of_which_no_call_is_known_asks_for_shapes(app: App, tmp_path: Path) -> None:
    assert app(*of("WithoutForward"), "--run_dir", tmp_path).status == 0
    ended = export(app, tmp_path)
    assert ended.status == 2
    assert "no inputs are known for WithoutForward" in ended.err
    assert "--input_shape" in ended.err
    assert "Traceback" not in ended.err
    ended = app("export", "--run_dir", tmp_path, "--format", "safetensors")
    assert ended.status == 0, ended.text
    assert "every tensor, bit by bit; not what it computes" in ended.out
    ended = export(app, tmp_path, "--submodule", "judge")
    assert "as training_step calls it with a batch of data.test" in ended.out, ended.text
    ended = export(app, tmp_path, "--submodule", "generator", "--input_shape", "2,4")
    assert "forward(input: (2, 4) float32), given by --input_shape" in ended.out, ended.text
    assert_one_message(
        export(app, tmp_path, "--submodule", "judge", "--input_shape", "2,5"), "forward does not take it"
    )


@pytest.mark.parametrize("rows", [3, 7])
def test_a_batch_is_resized_in_all_its_parts(rows: int) -> None:
    batch = {
        "x": torch.arange(10).reshape(5, 2),
        "names": list("abcde"),
        "deep": [torch.ones(5)],
        "whole": torch.ones(2),
    }
    found = _resized(batch, rows)
    assert (len(found["x"]), len(found["names"]), len(found["deep"][0]), len(found["whole"])) == (rows, rows, rows, 2)


def test_tensors_of_a_call_stand_in_the_order_of_a_graph() -> None:
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    call = Inputs((one, [two, None, 3]), {"more": {"x": three}})
    assert [len(each) for each in call.tensors] == [1, 2, 3]
