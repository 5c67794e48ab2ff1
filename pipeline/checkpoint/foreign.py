"""Checkpoints and weights that other programs wrote: what a file is, and its content, without executing code of it.

Whatever the user names as a checkpoint or as weights is opened here, so that a file of another kind is one sentence.
"""

import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, cast

from pipeline.cache.fetch import fetched
from pipeline.checkpoint.commit import read_record, select
from pipeline.errors import UserError, in_one_line
from pipeline.run.retry import patiently
from pipeline.run.run_dir import CHECKPOINTS, RunDir
from pipeline.run.storage import open_filesystem
from pipeline.run.storage_errors import is_away, raise_for_user

if TYPE_CHECKING:
    from torch import Tensor

_HEAD = 4096
_LONGEST_HEADER = 100_000_000
"""Bytes, of a safetensors file."""
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_LEGACY = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
"""Begins what torch.save writes in its older form, which is a pickle, too."""
_DOWNLOAD = "a server sent it instead of the file: download it again"
_UNPACK = "unpack it first"
_FIRST_BYTES = (
    (b"<", f"a web page or an XML message; {_DOWNLOAD}"),
    (b"version https://git-lfs", "a pointer of Git LFS: get the file itself by `git lfs pull`"),
    (b"{", "a JSON file: name the file of the weights"),
    (b"\x1f\x8b", f"compressed by gzip: {_UNPACK}"),
    (b"BZh", f"compressed by bzip2: {_UNPACK}"),
    (b"\xfd7zXZ", f"compressed by xz: {_UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"compressed by zstd: {_UNPACK}"),
    (b"\x89HDF", "an HDF5 file, as Keras writes: convert it to a state_dict"),
    (b"GGUF", "a GGUF file, as llama.cpp reads: convert it to a state_dict"),
    (b"\x93NUMPY", "a numpy array: give a mapping of names to tensors, saved by torch.save"),
)
_NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
"""Where training scripts keep the weights among other things, the first that is there."""
_SHARDED = ("model.safetensors", "pytorch_model.bin")
"""The names that Hugging Face's libraries save under; with `.index.json` for weights in several files."""
_SHOWN = 10


@contextmanager
def local_copy(url: str, name: str, sha256: str | None = None) -> Iterator[str]:
    """Yield the path of a file on this node, fetched once for all its processes.

    Args:
        url: A local path or any fsspec URL.
        name: What to call it in an error, such as `weights='x.pt'`.
        sha256: Its expected digest, if there is one.

    Raises:
        UserError: There is none, it may not be read, or it is a folder or damaged.
        StorageAway: Its storage does not answer.
    """
    with ExitStack() as held:
        try:
            fs, path = open_filesystem(url, name)
            if patiently(name, lambda: fs.isdir(path)):
                raise UserError(f"{name} {_folder(fs, path)}")
            source = held.enter_context(fetched(url, sha256))
        except FileNotFoundError as error:
            if is_away(error):
                raise_for_user(error, f"{name} cannot be read", "")
            raise UserError(f"{name} does not exist: name the file itself, by a local path or any URL") from error
        except Exception as error:  # noqa: BLE001 - every storage has errors of its own
            raise_for_user(error, f"{name} cannot be read", "Name a file that this user may read")
        yield source.path


def load_file(
    path: str,
    name: str,
    weights_only: bool = True,
    map_location: Any = "cpu",
    *,
    mmap: bool = False,
    skip: bool = False,
) -> Any:
    """Return what a file holds: the object of torch.save, or the tensors of safetensors by name.

    Args:
        path: On this node.
        name: What to call it in an error.
        weights_only: Whether to refuse what would execute pickled code.
        map_location: As for `torch.load`.
        mmap: Whether tensors may be read where they are used; the file must not change meanwhile.
        skip: Whether the content of tensors is of no interest.

    Raises:
        UserError: It is of another kind, damaged, or would execute code.
    """
    with open(path, "rb") as file:
        head, size = file.read(_HEAD), os.fstat(file.fileno()).st_size
    if not size:
        raise UserError(f"{name} is empty: its download or save did not finish")
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header < _LONGEST_HEADER:
        return _load_safetensors(path, name, header + 8, size)
    for start, what in _FIRST_BYTES:
        if head.lstrip().startswith(start):
            raise UserError(f"{name} is {what}")
    if head.startswith(_PICKLE) and _LEGACY not in head[:32]:
        raise UserError(
            f"{name} is a pickle that torch.save did not write: load it, and save a state_dict by torch.save"
        )
    zipped = head.startswith(_ZIP)
    if zipped:
        _require_torch_archive(path, name, size, weights_only)
    import torch  # noqa: PLC0415 - takes a second, which commands that only hash need not spend
    from torch.serialization import skip_data  # noqa: PLC0415

    try:
        with warnings.catch_warnings(action="ignore"), skip_data() if skip else nullcontext():
            return torch.load(path, map_location, weights_only=weights_only, mmap=mmap and zipped and not skip)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise UserError(f"{name} {_why_not(error, path, weights_only)}") from error


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
        if not fs.isdir(path):
            folder, _, file = url.rpartition("/")
            step, record = RunDir.checkpoint_step(file), None
            if step is not None and folder.rpartition("/")[2] == CHECKPOINTS:
                record = read_record(RunDir(folder.rpartition("/")[0] or "."), step)
            return url, None if record is None else record.sha256
        run = RunDir(url)
        if run.steps()["json"]:
            chosen = select(run)
            return run.url_of(chosen.name), chosen.sha256
        for file in (each for whole in _SHARDED for each in (whole, f"{whole}.index.json")):
            if fs.exists(f"{path}/{file}"):
                return f"{url}/{file}", None
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        raise_for_user(error, f"{name} cannot be read", "Name a file or a run directory that this user may read")
    raise UserError(f"{name} {_folder(fs, path, 'has no committed checkpoint: train there first, or name another')}")


@contextmanager
def weights(url: str, sha256: str | None = None, weights_only: bool = True) -> "Iterator[dict[str, Tensor]]":
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
    """Load the files that an index names, all of them beside it."""
    try:
        with open(path, "rb") as file:
            files = sorted({str(each) for each in json.load(file)["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name} is no index of weights in several files: it has no weight_map") from error
    beside = url.rpartition("/")[0]
    found: dict[str, Tensor] = {}
    for each in files:
        found |= load(f"{beside}/{each}" if beside else each, f"{name}: its part {each!r}")
    return found


def _load_safetensors(path: str, name: str, start: int, size: int) -> "dict[str, Tensor]":
    from safetensors import SafetensorError  # noqa: PLC0415 - imports torch
    from safetensors.torch import load_file as load  # noqa: PLC0415

    if start > size:
        raise UserError(f"{name} is truncated: its header alone has more than its {size} bytes")
    try:
        return load(path)
    except SafetensorError as error:
        raise UserError(
            f"{name} is a damaged safetensors file: {in_one_line(error)}. Download or save it again"
        ) from error


def _require_torch_archive(path: str, name: str, size: int, weights_only: bool) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except zipfile.BadZipFile as error:
        raise UserError(f"{name} is truncated or damaged ({size} bytes): download or save it again") from error
    if weights_only and any("/code/" in member for member in members):
        raise UserError(
            f"{name} is a TorchScript archive, which holds code: save torch.jit.load(path).state_dict() by torch.save"
        )
    if not any(member.endswith("/data.pkl") for member in members):
        raise UserError(f"{name} is a zip archive that torch.save did not write: it holds {_listed(members)}")


def _why_not(error: Exception, path: str, weights_only: bool) -> str:
    """Return why torch.load failed, and what to do."""
    if weights_only and ("weights_only" in str(error) or "Weights only" in str(error)):
        if classes := _classes(error, path):
            return (
                f"holds objects of {_listed(classes)}, and loading those would execute pickled code. If you trust "
                "whoever wrote the file, add --weights_only false"
            )
        last = str(error).partition("WeightsUnpickler error:")[2] or str(error)
        return f"is damaged, or no file that torch.save wrote: {' '.join(last.split())[:150]}"
    if isinstance(error, (ImportError, AttributeError)):
        return f"needs what cannot be imported here: {in_one_line(error)}. Install it, or put it on PYTHONPATH"
    return f"is damaged, or no file that torch.save wrote: {in_one_line(error)[:150]}"


def _classes(error: Exception, path: str) -> list[str]:
    """Return the names of the classes and functions that a file would call when it is unpickled."""
    from torch.serialization import get_unsafe_globals_in_checkpoint  # noqa: PLC0415

    with suppress(Exception):  # the older of torch's two forms has no list
        if found := get_unsafe_globals_in_checkpoint(path):
            return sorted(found)
    return re.findall(r"(?:GLOBAL|global|class|function) ([\w.]+\.\w+)", str(error))[:1]


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
        return f"a mapping with the keys {_listed(map(str, content))}" if content else "an empty mapping"
    kind = type(content)
    return f"an object of {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")


def _listed(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _folder(
    fs: Any,
    path: str,
    run: str = "is a run directory: resume it by --run_dir, start from its weights by --weights, or name one of its "
    f"files {CHECKPOINTS}/step-*.ckpt",
) -> str:
    """Return what a folder is that was named in the place of a file; `run` is what to say of a run directory."""
    if fs.exists(f"{path}/.metadata"):
        return (
            "is a sharded checkpoint of torch.distributed.checkpoint: convert it to one file by "
            "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch <folder> <file>`"
        )
    return run if fs.exists(f"{path}/{CHECKPOINTS}") else "is a folder: name the file in it"
