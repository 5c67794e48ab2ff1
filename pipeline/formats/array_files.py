"""Where arrays lie in files of numpy (`.npy`, `.npz`) and safetensors, so that they can be mapped."""

import io
import json
import math
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open

from pipeline.cache import Mapped
from pipeline.errors import UserError, in_one_line
from pipeline.formats.batched import Rows
from pipeline.formats.files import FileList, MappedFile

ENDINGS = (".npy", ".npz", ".safetensors")
_HEADER = 1 << 16
"""Bytes within which the header of a .npy file ends: numpy itself refuses longer ones."""
_DTYPES: dict[str, tuple[str, torch.dtype | None]] = {
    **{name: (code, None) for name, code in (("F64", "f8"), ("F32", "f4"), ("F16", "f2"), ("C64", "c8"))},
    **{f"I{8 * size}": (f"i{size}", None) for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": (f"u{size}", None) for size in (1, 2, 4, 8)},
    "BOOL": ("?", None),
    "BF16": ("u2", torch.bfloat16),
    "F8_E4M3": ("u1", torch.float8_e4m3fn),
    "F8_E5M2": ("u1", torch.float8_e5m2),
}
"""What safetensors calls its types: numpy's name, and torch's where numpy has none."""


@dataclass(frozen=True)
class MappedTensor:
    """An array in a mapped file.

    Attributes:
        array: Its rows, read-only.
        dtype: What its bits mean to torch, where numpy has no name for it.
    """

    array: npt.NDArray[Any]
    dtype: torch.dtype | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.array.shape

    def rows(self, indices: Rows) -> Any:
        """Return rows: a tensor, or a list of texts or bytes."""
        found = np.asarray(self.array)[indices]
        if found.dtype.kind in "US":
            return found.tolist()
        rows = torch.from_numpy(found.astype(found.dtype.newbyteorder("="), copy=False))
        return rows if self.dtype is None else rows.view(self.dtype)


def read_arrays(files: FileList, at: int, name: str | None) -> dict[str, MappedTensor]:
    """Return the arrays of a file by their names.

    Args:
        files: The list that it is in.
        at: Which one it is.
        name: What a file of a single array is called; None: as the file, without its ending.

    Raises:
        UserError: It is damaged, or what it holds cannot be mapped.
        StorageAway: The storage does not answer.
    """
    url, raw = files.url(at), files.map(at)
    where = f"{files.what}: {url}"
    ending = f".{url.rpartition('.')[2].lower()}"
    if ending == ".safetensors":
        found = _safetensors(raw, where)
    elif ending == ".npz":
        found = _npz(raw, where)
    elif ending == ".npy":
        own = name or files.files[at].name.rpartition("/")[2].rpartition(".")[0]
        return {own: MappedTensor(_npy(raw, 0, len(raw), where))}
    else:
        raise UserError(f"{where} must end with {', '.join(ENDINGS)}")
    if name is not None and name not in found:
        raise UserError(f"{where} holds no array {name!r}; it holds {', '.join(found) or 'none'}")
    return found if name is None else {name: found[name]}


def _npy(raw: Mapped, start: int, end: int, where: str) -> npt.NDArray[Any]:
    """Return the array of a .npy file that lies between two bytes of another one."""
    header = io.BytesIO(raw[start : min(end, start + _HEADER)].tobytes())
    try:
        version = npy.read_magic(header)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, dtype = read(header)
    except (ValueError, SyntaxError, struct.error, EOFError) as error:
        raise UserError(
            f"{where}: the header of .npy at byte {start} is damaged ({in_one_line(error)}). Write the file again"
        ) from error
    if dtype.hasobject or dtype.names is not None or dtype.kind not in "biufcUS":
        raise UserError(
            f"{where}: its values are {dtype}, which cannot be mapped to numbers or texts: write one array of numbers "
            "for each field"
        )
    begin = start + header.tell()
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed:
        raise UserError(
            f"{where}: {end - begin} bytes lie behind its header, which ends at byte {begin}, and {shape} of {dtype} "
            f"take {needed}: it is cut off or damaged. Write it again"
        )
    flat = raw[begin:end].view(dtype) if needed else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if by_columns else "C")


def _npz(raw: Mapped, where: str) -> dict[str, MappedTensor]:
    found = {}
    try:
        # A view of the mapped memory: the directory at the end is read, and no more.
        members = zipfile.ZipFile(io.BufferedReader(MappedFile(raw))).infolist()
    except (zipfile.BadZipFile, ValueError, struct.error, EOFError) as error:
        raise UserError(
            f"{where}: its {len(raw)} bytes are no whole .npz file ({in_one_line(error)}). Write it again"
        ) from error
    for member in sorted(members, key=lambda each: each.filename):
        if member.compress_type != zipfile.ZIP_STORED:
            raise UserError(
                f"{where}: {member.filename} is compressed, and can be read only as a whole: write it by numpy.savez "
                "instead of numpy.savez_compressed"
            )
        local = raw[member.header_offset : member.header_offset + 30].tobytes()
        if len(local) < 30 or local[:4] != b"PK\x03\x04":
            raise UserError(f"{where}: {member.filename} does not begin at byte {member.header_offset}: it is damaged")
        start = member.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
        array = _npy(raw, start, start + member.file_size, f"{where}: {member.filename}")
        found[member.filename.removesuffix(".npy")] = MappedTensor(array)
    return found


def _safetensors(raw: Mapped, where: str) -> dict[str, MappedTensor]:
    source = raw.source
    assert source is not None
    try:
        # The library compares all offsets with the file before anything is read by them.
        with safe_open(source.path, framework="numpy"):
            pass
        (size,) = struct.unpack("<Q", raw[:8].tobytes())
        header = json.loads(raw[8 : 8 + size].tobytes())
    except (SafetensorError, ValueError, struct.error, OSError) as error:
        raise UserError(
            f"{where}: its {len(raw)} bytes are no whole safetensors file ({in_one_line(error)}{_overlap(raw)}). "
            "Write it again"
        ) from error
    found = {}
    for name, about in sorted(header.items()):
        if name == "__metadata__":
            continue
        if about["dtype"] not in _DTYPES:
            raise UserError(f"{where}: {name!r} is {about['dtype']}; known are {', '.join(_DTYPES)}")
        code, dtype = _DTYPES[about["dtype"]]
        first, last = (8 + size + offset for offset in about["data_offsets"])
        flat = raw[first:last].view(f"<{code}") if last > first else np.empty(0, code)
        found[name] = MappedTensor(flat.reshape(about["shape"]), dtype)
    return found


def _overlap(raw: Mapped) -> str:
    """Return which tensors overlap or leave a gap, as the header has it, or nothing."""
    try:
        (size,) = struct.unpack("<Q", raw[:8].tobytes())
        header = json.loads(raw[8 : 8 + min(size, len(raw))].tobytes())
        parts = sorted((*each["data_offsets"], name) for name, each in header.items() if name != "__metadata__")
        end = 0
        for first, last, name in parts:
            if first != end:
                return f"; {name!r} lies at bytes {first} to {last} of the data, and the one before ends at {end}"
            end = last
        if 8 + size + end != len(raw):
            return f"; its tensors end at byte {8 + size + end}, and the file at {len(raw)}"
    except (ValueError, struct.error, TypeError, KeyError, AttributeError):
        pass
    return ""
