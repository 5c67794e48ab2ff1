"""The records of a TFRecord file, and whether their bytes are what was written.

A record is its length (uint64), the checksum of the length, its bytes, and their checksum; a checksum is a masked
CRC-32C (uint32), everything little-endian. Checksums of many records are computed at once, byte by byte.
"""

import struct
from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_HEADER = struct.Struct("<QI")
_LENGTH = 8
_FOOTER = 4
_POLYNOMIAL = 0x82F63B78
_MASK = np.uint32(0xA282EAD8)
_BYTE = np.uint32(0xFF)
_ONES = np.uint32(0xFFFFFFFF)
_AT_ONCE = 1 << 14
"""Records whose checksums are computed together: what they need stays in a processor's cache."""

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RecordFrames:
    """The whole records at the beginning of some bytes.

    Attributes:
        starts: (n,) Where the bytes of each begin.
        lengths: (n,) How many they are.
        end: Where the last whole record ends.
        broken: Whether a length is damaged there, so that nothing after it can be found.
    """

    starts: Positions
    lengths: Positions
    end: int
    broken: bool


def frames(data: bytes) -> RecordFrames:
    """Return the whole records at the beginning of `data`, which may end within one."""
    starts, lengths, sums = array("q"), array("q"), array("I")
    at, size, unpack = 0, len(data), _HEADER.unpack_from
    incomplete = False
    while not incomplete and at + _HEADER.size <= size:
        length, checksum = unpack(data, at)
        end = at + _HEADER.size + length + _FOOTER
        incomplete = end > size
        starts.append(at + _HEADER.size)
        lengths.append(0 if incomplete else length)
        sums.append(checksum)
        at = at if incomplete else end
    first, long = np.array(starts, np.int64), np.array(lengths, np.int64)
    raw = np.frombuffer(data, np.uint8)
    good = masked_crcs(raw, first - _HEADER.size, np.full(len(first), _LENGTH)) == np.array(sums, np.uint32)
    broken = not good.all()
    whole = int(np.argmin(good)) if broken else len(first) - incomplete
    end = int(first[whole]) - _HEADER.size if whole < len(first) else at
    return RecordFrames(first[:whole], long[:whole], end, broken)


def intact(data: bytes, starts: Positions, lengths: Positions) -> npt.NDArray[np.bool_]:
    """Return of each of some records whether its bytes fit its checksum, (n,)."""
    raw = np.frombuffer(data, np.uint8)
    stored = np.zeros(len(starts), np.uint32)
    for byte in range(_FOOTER):
        stored |= raw[starts + lengths + byte].astype(np.uint32) << np.uint32(8 * byte)
    return np.equal(masked_crcs(raw, starts, lengths), stored)


def masked_crcs(raw: npt.NDArray[np.uint8], starts: Positions, lengths: Positions) -> npt.NDArray[np.uint32]:
    """Return the masked CRC-32C of each of some pieces of `raw`, (n,)."""
    order = np.argsort(lengths, kind="stable")
    found = np.empty(len(starts), np.uint32)
    for first in range(0, len(order), _AT_ONCE):
        chosen = order[first : first + _AT_ONCE]
        found[chosen] = _crcs_of_sorted(raw, starts[chosen], lengths[chosen])
    return ((found >> np.uint32(15)) | (found << np.uint32(17))) + _MASK


def _crcs_of_sorted(raw: npt.NDArray[np.uint8], starts: Positions, lengths: Positions) -> npt.NDArray[np.uint32]:
    crcs = np.full(len(starts), _ONES, np.uint32)
    for byte in range(int(lengths[-1])):
        over = int(np.searchsorted(lengths, byte, side="right"))
        part = crcs[over:]
        crcs[over:] = _TABLE[(part ^ raw[starts[over:] + byte]) & _BYTE] ^ (part >> np.uint32(8))
    return crcs ^ _ONES


def _crc_table() -> npt.NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & np.uint32(1), (table >> np.uint32(1)) ^ np.uint32(_POLYNOMIAL), table >> np.uint32(1))
    return table


_TABLE = _crc_table()
