"""Weights by name in files of any program, and the checkpoints from which Lightning can resume.

A run directory stands for its best checkpoint, and an index for all the files that it names.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

from pipeline.checkpoint.commit import read_record, select
from pipeline.checkpoint.foreign import describe_folder, is_folder, listed, load_file, local_copy
from pipeline.errors import UserError
from pipeline.run.retry import patiently
from pipeline.run.run_dir import RunDir
from pipeline.run.storage import open_filesystem
from pipeline.run.storage_errors import raise_for_user

if TYPE_CHECKING:
    from torch import Tensor

_NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
"""Where training scripts keep the weights among other things, the first that is there."""
_SHARDED = ("model.safetensors", "pytorch_model.bin")
"""The names that Hugging Face's libraries save under; with `.index.json` for weights in several files."""


def require_checkpoint(url: str, trains: bool, weights_only: bool = True) -> None:
    """Refuse a `ckpt_path` that Lightning could not load, before anything is built.

    Args:
        url: As the user gave it.
        trains: Whether training resumes from it, which needs more than weights.
        weights_only: Whether to refuse what would execute pickled code.

    Raises:
        UserError: It is no such file, with what to do.
        StorageAway: Its storage does not answer.
    """
    name = f"ckpt_path={url!r}"
    with local_copy(url, name) as path:
        content = load_file(path, name, weights_only, skip=True)
    wanted = ["pytorch-lightning_version", "state_dict", *(["optimizer_states", "lr_schedulers"] if trains else [])]
    missing = [key for key in wanted if not _is_mapping(content) or key not in content]
    if not missing:
        return
    if len(missing) < len(wanted) and "state_dict" not in missing and "pytorch-lightning_version" not in missing:
        what = "holds weights alone (save_weights_only), so training cannot resume from it"
    elif _weights_in(content) is None:
        raise UserError(f"{name} is no Lightning checkpoint: it holds {_summary(content)}. Name another file")
    else:
        what = f"holds weights, but is no Lightning checkpoint (it has no {missing[0]!r})"
    raise UserError(
        f"{name} {what}. To start training from its weights, give them as --weights {url} instead"
        + ("" if trains else "; to evaluate them, save {'state_dict': ..., 'pytorch-lightning_version': '2.0.0'}")
    )


def locate_weights(url: str) -> tuple[str, str | None]:
    """Return the file of the weights that a user named, and its digest where a run has committed it.

    Args:
        url: Of a file; of a run directory, for its best or else latest checkpoint; or of a folder of Hugging Face's.

    Raises:
        UserError: There is none, or it is a folder of another kind.
        StorageAway: Its storage does not answer.
    """
    name, url = f"weights={url!r}", url.rstrip("/")
    fs, path = open_filesystem(url, name)
    try:
        if not patiently(name, lambda: is_folder(fs, path)):
            return url, _committed_digest(url)
        run = RunDir(url)
        if run.steps()["json"]:
            chosen = select(run)
            return run.url_of(chosen.name), chosen.sha256
        for file in (each for whole in _SHARDED for each in (whole, f"{whole}.index.json")):
            if fs.exists(f"{path}/{file}"):
                return f"{url}/{file}", None
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        raise_for_user(error, f"{name} cannot be read", "Name a file or a run directory that this user may read")
    raise UserError(
        f"{name} {describe_folder(fs, path, 'has no committed checkpoint: train there first, or name another')}"
    )


def _committed_digest(url: str) -> str | None:
    """Return the digest in the commit record of a checkpoint that lies in a run directory; None for any other file."""
    folders, _, file = url.rpartition("/")
    run, _, folder = folders.rpartition("/")
    step = RunDir.checkpoint_step(f"{folder}/{file}")
    record = None if step is None else read_record(RunDir(run or ("/" if url.startswith("/") else ".")), step)
    return None if record is None else record.sha256


@contextmanager
def read_weights(url: str, sha256: str | None = None, weights_only: bool = True) -> "Iterator[dict[str, Tensor]]":
    """Yield the tensors of a file by name, from wherever it holds them; memory-mapped until the block ends.

    Args:
        url: As `locate_weights` returns it.
        sha256: Its expected digest, if there is one.
        weights_only: Whether to refuse what would execute pickled code.

    Raises:
        UserError: It holds none, or cannot be loaded.
        StorageAway: Its storage does not answer.
    """
    name = f"weights={url!r}"
    with ExitStack() as held:

        def load(url: str, name: str, sha256: str | None = None) -> "dict[str, Tensor]":
            path = held.enter_context(local_copy(url, name, sha256))
            content = load_file(path, name, weights_only, mmap=True)
            found = _weights_in(content)
            if found is None:
                raise UserError(f"{name} holds no weights by name, but {_summary(content)}")
            return found

        if url.endswith(".index.json"):
            yield _load_shards(held.enter_context(local_copy(url, name)), url, name, load)
        else:
            yield load(url, name, sha256)


def _load_shards(
    path: str, url: str, name: str, load: "Callable[[str, str], dict[str, Tensor]]"
) -> "dict[str, Tensor]":
    """Load the files that an index names: an index from elsewhere must not choose what else of this user's is read.

    Raises:
        UserError: It is no index, or names a file that is not in its own folder.
    """
    try:
        with open(path, "rb") as file:
            files = sorted({str(each) for each in json.load(file)["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name} is no index of weights in several files: it has no weight_map") from error
    if outside := [each for each in files if each in ("", ".", "..") or set(each) & set("/\\:")]:
        raise UserError(
            f"{name} names {listed(outside)}: the parts must be plain file names, of files in the folder of the index. "
            "Put them there and correct the names in its weight_map"
        )
    beside = url.rpartition("/")[0]
    found: dict[str, Tensor] = {}
    for each in files:
        found |= load(f"{beside}/{each}" if beside else each, f"{name}: its part {each!r}")
    return found


def _weights_in(content: Any) -> "dict[str, Tensor] | None":
    """Return the tensors by name that an object holds: itself, at one of the usual keys, or at the only one."""
    import torch  # noqa: PLC0415

    if isinstance(content, torch.nn.Module):
        return content.state_dict()
    if not _is_mapping(content):
        return None
    tensors = [isinstance(value, torch.Tensor) or str(key).endswith("_extra_state") for key, value in content.items()]
    if all(tensors) and any(isinstance(value, torch.Tensor) for value in content.values()):
        return cast("dict[str, Tensor]", content)
    named = [key for key in _NESTED if key in content]
    inside = [found for key in named or content if (found := _weights_in(content[key])) is not None]
    return inside[0] if named and inside else inside[0] if len(inside) == 1 else None


def _is_mapping(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(isinstance(key, str) for key in content)


def _summary(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a mapping with the keys {listed(map(str, content))}" if content else "an empty mapping"
    kind = type(content)
    return f"an object of {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")
