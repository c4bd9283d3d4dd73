"""Check the header of a GGUF file before any library reads the file.

A header holds lengths. In a truncated or hostile file they make a library that trusts them allocate or loop without
end. So each length is first compared with the size of the file. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, Final

__all__ = ["GGUFError", "check_header"]

_SCALARS: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type number -> bytes of a value."""
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_COUNTS: Final = {4: "I", 5: "i", 10: "Q", 11: "q"}
ELEMENTS: Final = 1 << 22
"""Most elements of all arrays of a header: 16 times a vocabulary of 262,144. Each costs a reader some objects."""
DEPTH, AXES, COUNT = 3, 4, 1 << 16
"""Most levels of nested arrays, axes of a tensor, and entries of a header."""


class GGUFError(ValueError):
    """A file is not a GGUF file, or is truncated or damaged. The message says what is wrong, and by how many bytes."""


class _Walk:
    """A position in the file, from which numbers and texts are read; it never passes the end of the file."""

    def __init__(self, data: Any, path: Path) -> None:
        self.data, self.path, self.at, self.order = data, path, 4, "<"
        self.elements = 0

    def skip(self, size: int) -> int:
        """Move on by `size` bytes; returns where they begin."""
        start = self.at
        if size > len(self.data) - start:
            raise GGUFError(
                f"{self.path} is cut or damaged: it has {len(self.data):,} bytes, and its header asks for "
                f"{start + size:,} at least; download it again"
            )
        self.at += size
        return start

    def number(self, kind: str) -> int:
        start = self.skip(struct.calcsize(kind))
        return int(struct.unpack_from(self.order + kind, self.data, start)[0])

    def text(self) -> str:
        size = self.number("Q")
        start = self.skip(size)
        try:
            return bytes(self.data[start : start + size]).decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"the name at byte {start:,} is not UTF-8") from None

    def damaged(self, what: str) -> GGUFError:
        return GGUFError(f"{self.path} is not a GGUF model that can be read: {what}")

    def value(self, kind: int, depth: int = 0) -> None:
        """Skip a value."""
        if kind in _SCALARS:
            self.skip(_SCALARS[kind])
        elif kind == _STRING:
            self.skip(self.number("Q"))
        elif kind == _ARRAY and depth < DEPTH:
            inner, count = self.number("I"), self.number("Q")
            self.elements += count
            if count > len(self.data) - self.at or self.elements > ELEMENTS:
                raise GGUFError(
                    f"{self.path} is cut or damaged: it has {len(self.data):,} bytes, and an array in its header asks "
                    f"for {count:,} elements"
                )
            if inner in _SCALARS:
                self.skip(count * _SCALARS[inner])
            else:
                for _ in range(count):
                    self.value(inner, depth + 1)
        else:
            raise self.damaged(f"a value at byte {self.at:,} has the type {kind}")


def check_header(path: Path) -> None:
    """Raise GGUFError unless everything that the header of a GGUF file describes lies inside the file.

    Cost: one read of the header: milliseconds, or a fraction of a second for a large vocabulary.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise GGUFError(f"{path} is not a GGUF model: it does not begin with the letters GGUF")
        if size < 24:
            raise GGUFError(f"{path} is cut: it has {size} bytes, and the header of a GGUF file has 24 at least")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check(_Walk(data, path))


def _check(walk: _Walk) -> None:
    version = walk.number("I")
    if version & 0xFFFF == 0:  # written on a machine with the other byte order
        walk.order, version = ">", int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in (2, 3):
        raise walk.damaged(f"it says that it has version {version}, and 2 and 3 are known")
    tensors, entries = walk.number("Q"), walk.number("Q")
    if max(tensors, entries) > COUNT:
        raise walk.damaged(f"its header asks for {tensors:,} tensors and {entries:,} entries")
    alignment, names = 32, {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}
    for _ in range(entries):
        name, kind = walk.text(), walk.number("I")
        if name in names:
            raise walk.damaged(f"the entry {name!r} is there twice")
        names.add(name)
        start = walk.at
        walk.value(kind)
        if name.endswith(".block_count") and kind in _COUNTS:
            blocks = struct.unpack_from(walk.order + _COUNTS[kind], walk.data, start)[0]
            if blocks > tensors:
                raise walk.damaged(f"{name} is {blocks:,}, and it has {tensors:,} tensors")
        if name == "general.alignment":
            alignment = int(struct.unpack_from(walk.order + "I", walk.data, start)[0]) if kind == _UINT32 else 0
            if alignment == 0 or alignment & (alignment - 1):
                raise walk.damaged("its alignment is no power of two")
    _check_tensors(walk, tensors, alignment)


def _check_tensors(walk: _Walk, count: int, alignment: int) -> None:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    sizes = {int(kind): GGML_QUANT_SIZES[kind] for kind in GGMLQuantizationType if kind in GGML_QUANT_SIZES}
    end, names = 0, set()
    for _ in range(count):
        name, axes = walk.text(), walk.number("I")
        if name in names:
            raise walk.damaged(f"the tensor {name!r} is there twice")
        names.add(name)
        if axes > AXES:
            raise walk.damaged(f"the tensor {name!r} has {axes:,} axes")
        shape = [walk.number("Q") for _ in range(axes)]
        kind, offset = walk.number("I"), walk.number("Q")
        if kind not in sizes:
            raise walk.damaged(f"the tensor {name!r} has the unknown type {kind}")
        weights, bytes_ = sizes[kind]
        elements = 1
        for n in shape:
            elements *= n
        if not elements or (shape[0] if shape else 1) % weights:
            raise walk.damaged(f"the tensor {name!r} of shape {shape} is not made of blocks of {weights}")
        if offset % alignment:
            raise walk.damaged(f"the tensor {name!r} does not begin at a multiple of {alignment} bytes")
        end = max(end, offset + elements // weights * bytes_)
    begin = -(-walk.at // alignment) * alignment
    if count and begin + end > len(walk.data):
        raise GGUFError(
            f"{walk.path} is cut: it has {len(walk.data):,} bytes, and its header asks for {begin + end:,}; "
            f"download it again"
        )
