"""What an exported file says of itself: the run, the step and the digest it comes from, and what it was made with."""

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.run.provenance import DISTRIBUTION
from pipeline.run.run_dir import SCHEMA

ENDINGS = {"safetensors": "safetensors", "state_dict": "pt", "pt2": "pt2", "onnx": "onnx"}
"""The formats, and how the names of their files end."""
KEY = DISTRIBUTION
"""Under which a format of named texts holds the whole description as JSON."""
_PACKAGES = ("torch", "lightning", "numpy", "safetensors", DISTRIBUTION)
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class Description:
    """Where an exported file comes from. Nothing in it depends on when it is exported: the same again is the same file.

    Attributes:
        run: The URL of the run directory.
        step: Optimizer steps done.
        checkpoint: The name of the checkpoint file.
        checkpoint_sha256: Its digest, `sha256:<hex>`.
        checkpoint_created: RFC 3339, UTC.
        class_path: Of the model.
        submodule: The part that is exported, "" for all of it.
        weights: `averaged`, `current` (beside an average) or `trained`.
        inputs: What forward takes, in words; "" where that is not known.
        tied: Which tensors are the same as another one that the file holds.
        versions: Of Python and the packages that wrote the file.
    """

    run: str
    step: int
    checkpoint: str
    checkpoint_sha256: str
    checkpoint_created: str
    class_path: str
    submodule: str
    weights: str
    inputs: str = ""
    tied: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it in JSON's types, with its schema."""
        return {"schema": SCHEMA, **asdict(self)}

    def as_texts(self) -> dict[str, str]:
        """Return it for a format that holds texts by name: the simple ones as they are, and all of it under `KEY`."""
        simple = {key: str(value) for key, value in self.as_dict().items() if isinstance(value, (str, int))}
        return {**simple, KEY: json.dumps(self.as_dict())}


def versions(with_onnx: bool) -> dict[str, str]:
    """Return the versions of Python and of the packages that write a file."""
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, *(_ONNX_PACKAGES if with_onnx else ())):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that is not installed
            continue
    return found
