"""Frames of an append-only file: payloads with their lengths, and checksums that continue from frame to frame.

    preamble | frame(header) frame(record) frame(record) ...
    frame(p) = u32 len(p) | u32 crc of the length and all before it | p | u32 crc of p and all before it

Little endian. Every checksum continues the one before, so a flipped bit, a lost, doubled or swapped frame is found. A
frame that ends with the file, or in zero bytes up to its end (after a power loss), is a torn write.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_U32 = struct.Struct("<I")
_ZEROS = 8
"""So many zero bytes at the end of a file are no part of a frame: what a power loss leaves."""


class FrameError(ValueError):
    """A frame that is damaged; the message says where."""


def frame(payload: bytes, crc: int) -> tuple[bytes, int]:
    """(the bytes of a frame, the running checksum behind it)."""
    length = _U32.pack(len(payload))
    crc = zlib.crc32(length, crc)
    head = length + _U32.pack(crc)
    crc = zlib.crc32(payload, crc)
    return head + payload + _U32.pack(crc), crc


def frames(data: bytes, path: Path, preamble: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(payload, end offset, running crc) of each complete frame; stops at a torn end. Raises FrameError on damage."""
    at, crc, number = len(preamble), zlib.crc32(preamble), 0
    while at < len(data):
        what = "the header" if number == 0 else f"record {number - 1}"
        if at + 8 > len(data):
            return
        length, given = struct.unpack_from("<II", data, at)
        crc = zlib.crc32(data[at : at + 4], crc)
        if given != crc:
            if _ends_in_zeros(data, at + 8):
                return
            raise FrameError(f"{path}: {what}, at byte {at}, has a damaged length")
        if at + 12 + length > len(data):
            return
        payload = data[at + 8 : at + 8 + length]
        crc = zlib.crc32(payload, crc)
        if _U32.unpack_from(data, at + 8 + length)[0] != crc:
            if _ends_in_zeros(data, at + 12 + length):
                return
            raise FrameError(f"{path}: {what}, at byte {at}, fails its checksum")
        at += 12 + length
        number += 1
        yield payload, at, crc


def _ends_in_zeros(data: bytes, before: int) -> bool:
    """Whether the file is zero from a place before `before` on."""
    zeros = len(data) - len(data.rstrip(b"\0"))
    return zeros >= _ZEROS and len(data) - zeros < before
