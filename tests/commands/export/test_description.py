"""What a file says of itself is the same in each form, and does not depend on when it was written."""

import json

from pipeline.commands.export.description import KEY, versions
from tests.support.exported import SAID


def test_a_description_in_texts_holds_all_of_it_and_the_simple_parts_as_they_are() -> None:
    texts = SAID.as_texts()
    assert json.loads(texts[KEY]) == SAID.as_dict()
    assert (texts["schema"], texts["step"], texts["checkpoint_sha256"]) == ("1", "7", "sha256:ab")
    assert all(isinstance(each, str) for each in texts.values())
    assert SAID.as_dict()["schema"] == 1


def test_versions_are_of_what_writes_the_file() -> None:
    assert {"python", "torch", "safetensors"} <= versions(with_onnx=False).keys()
    assert "onnx" in versions(with_onnx=True)
    assert "onnx" not in versions(with_onnx=False)
