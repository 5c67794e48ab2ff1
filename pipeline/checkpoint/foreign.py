"""Checkpoints and weights that other programs wrote: what a file is, and its content, without executing code of it.

Whatever the user names as a checkpoint or as weights is opened here, so that a file of another kind is one sentence.
"""

import hashlib
import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from pipeline.cache.fetch import fetched
from pipeline.errors import UserError, in_one_line
from pipeline.run.run_dir import CHECKPOINTS
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
    fs, path = open_filesystem(url, name)
    with ExitStack() as held:
        try:
            source = held.enter_context(fetched(url, sha256))
        except Exception as error:
            if is_away(error) or isinstance(error, UserError):
                raise_for_user(error, f"{name} cannot be read", "")
            if is_folder(fs, path):
                raise UserError(f"{name} {describe_folder(fs, path)}") from error
            if isinstance(error, FileNotFoundError):
                raise UserError(f"{name} does not exist: name the file itself, by a local path or any URL") from error
            raise_for_user(error, f"{name} cannot be read", "Name a file that this user may read")
        yield source.path


def fetch(url: str, name: str) -> None:
    """Have a file on this node, where `local_copy` finds it at once. Arguments and errors are those of `local_copy`."""
    with local_copy(url, name):
        pass


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
        raise UserError(f"{name} is a zip archive that torch.save did not write: it holds {listed(members)}")


def _why_not(error: Exception, path: str, weights_only: bool) -> str:
    """Return why torch.load failed, and what to do."""
    if weights_only and ("weights_only" in str(error) or "Weights only" in str(error)):
        if classes := _classes(error, path):
            return (
                f"holds objects of {listed(classes)}, and loading those would execute pickled code. If you trust "
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


def listed(names: Iterable[str]) -> str:
    """Return the first few names, and how many more there are."""
    every = list(names)
    return ", ".join(every[:_SHOWN]) + (f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else "")


def is_folder(fs: Any, path: str) -> bool:
    """Return whether a path is a folder, by what is known of the path alone: who may read a file may list nothing."""
    try:
        return bool(fs.info(path)["type"] == "directory")
    except Exception as error:
        if is_away(error):
            raise
        return False


def describe_folder(
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


def digest(url: str) -> str:
    """Return the digest of a checkpoint that has no commit record, `sha256:<hex>`.

    Raises:
        UserError: It cannot be read.
        StorageAway: Its storage does not answer.
    """
    try:
        with fetched(url) as source, open(source.path, "rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        raise_for_user(error, f"ckpt_path={url!r} cannot be read", "Name a checkpoint file that this user may read")
