"""Weights that stay in files: mapped into memory, read ahead of their use, dropped after it.

A tensor that is a view of a mapped file takes physical memory only for the pages that were read. The system reads a
page when it is touched, and keeps it until it is told to drop it. Three calls bound the resident memory:

    want(t)     the system starts to read t from the disk, and returns at once (MADV_WILLNEED)
    drop(t)     the process no longer holds t's pages; what was written goes to the file (MADV_DONTNEED)
    walk(t)     goes over t in pieces: wants the next piece while one is in use, and drops each piece after use

None of them changes a value: a dropped page is read again when it is touched. Where the system has no such calls
(Windows) they do nothing.

The format is that of safetensors: u64 n | n bytes of JSON {name: {dtype, shape, data_offsets}} | data, little endian.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

PIECE = 1 << 24
"""Bytes of a piece in which weights are moved, copied or hashed: long enough for a disk, short beside a block."""

Source: TypeAlias = Tensor | Callable[[], Tensor]
"""A tensor, or what makes it when its turn comes."""

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ADVICE = {name: getattr(mmap, name) for name in ("MADV_WILLNEED", "MADV_DONTNEED") if hasattr(mmap, name)}
if sys.platform == "linux":
    _ADVICE["MADV_POPULATE_WRITE"] = 23  # since 5.14, without a name in Python
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Entry:
    """One tensor in a file: where its bytes begin, counted from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def contents(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file, from its header alone. Raises ValueError for a file that is none."""
    size = path.stat().st_size
    with open(path, "rb") as f:
        start = f.read(_LENGTH.size)
        length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else size
        try:
            header = json.loads(f.read(length)) if _LENGTH.size + length <= size else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise ValueError(f"{path} is no safetensors file: its header does not parse")
    found = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        if about["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: tensor {name!r} has dtype {about['dtype']}; known are {', '.join(_DTYPES)}")
        first, last = about["data_offsets"]
        entry = Entry(_DTYPES[about["dtype"]], tuple(about["shape"]), _LENGTH.size + length + first)
        if entry.bytes != last - first or entry.offset + entry.bytes > size:
            raise ValueError(f"{path}: tensor {name!r} does not lie in the file; was the download cut short?")
        found[name] = entry
    return found


class MappedFile:
    """A safetensors file whose tensors are views of its pages; `writable` shares what is written with the file.

    Writing to a tensor of a file that is not writable ends the process: the memory itself refuses.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.entries, self.writable = contents(path), writable
        with open(path, "r+b" if writable else "rb") as f:
            self.pages = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)

    def tensor(self, name: str) -> Tensor:
        """A view; it keeps the mapping open."""
        entry = self.entries[name]
        count = math.prod(entry.shape)
        if not count:
            return torch.empty(entry.shape, dtype=entry.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            flat = torch.frombuffer(self.pages, dtype=entry.dtype, count=count, offset=entry.offset)
        return flat.view(entry.shape)

    def advise(self, option: str, start: int, stop: int) -> None:
        """`MADV_` advice on the pages that bytes start..stop touch; nothing where the system has no such advice."""
        if option in _ADVICE and stop > start:
            start = start // mmap.PAGESIZE * mmap.PAGESIZE
            with suppress(OSError):  # a system that is older than the advice
                self.pages.madvise(_ADVICE[option], start, min(stop, len(self.pages)) - start)


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies. It is held, so that no other can have its identity."""

    tensor: Tensor
    file: MappedFile
    offset: int
    itemsize: int
    numel: int


class Offloaded(Protocol):
    """What a pass over offloaded weights needs: `Pages` here, `Streamed` in `offload/streamed.py`."""

    def __contains__(self, tensor: Tensor) -> bool: ...

    def walk(self, tensor: Tensor, size: int | None = None, *, write: bool = False) -> Iterator[tuple[int, int]]:
        """0..numel in pieces; `write` says that all elements will be written."""

    def forget(self) -> None:
        """Drop copies on a device: weights were written outside of a walk."""


class Pages:
    """Which tensors are views of mapped files, and the advice on them. Tensors are known by identity, not by memory."""

    def __init__(self) -> None:
        self._where: dict[int, _Place] = {}

    def add(self, tensor: Tensor, file: MappedFile, name: str) -> None:
        """Make `tensor` a view of `name` in `file`."""
        tensor.data = file.tensor(name)
        self._where[id(tensor)] = _Place(tensor, file, file.entries[name].offset, tensor.element_size(), tensor.numel())

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._where

    def writable(self, tensor: Tensor) -> bool:
        """Whether a tensor may be written to: true for tensors that are no views of a file here."""
        place = self._where.get(id(tensor))
        return place is None or place.file.writable

    def want(self, tensor: Tensor, start: int = 0, stop: int | None = None) -> None:
        """Begin to read the elements start..stop from the disk."""
        self._advise("MADV_WILLNEED", tensor, start, stop)

    def drop(self, tensor: Tensor, start: int = 0, stop: int | None = None) -> None:
        """Give back the pages of the elements start..stop."""
        self._advise("MADV_DONTNEED", tensor, start, stop)

    def _advise(self, option: str, tensor: Tensor, start: int, stop: int | None) -> None:
        if (at := self._where.get(id(tensor))) is not None:  # no torch function here: a lens may be watching
            stop = at.numel if stop is None else min(stop, at.numel)
            at.file.advise(option, at.offset + start * at.itemsize, at.offset + stop * at.itemsize)

    def forget(self) -> None:
        """Nothing to do: there are no copies."""

    def walk(self, tensor: Tensor, size: int | None = None, *, write: bool = False) -> Iterator[tuple[int, int]]:
        """0..numel in pieces of `size` elements (None: of `PIECE` bytes); other tensors than ours in one, when None.

        write: all of a piece will be written, so its pages are made writable in one go instead of one by one.
        """
        n = tensor.numel()
        mine = tensor in self
        if size is None:
            size = max(PIECE // tensor.element_size(), 1) if mine else max(n, 1)
        for start in range(0, n, size):
            stop = min(start + size, n)
            if mine:
                self.want(tensor, start if start == 0 else stop, stop + size)
            if write:
                self._advise("MADV_POPULATE_WRITE", tensor, start, stop)
            yield start, stop
            if mine:
                self.drop(tensor, start, stop)


def write(
    path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...], Source]], pages: Offloaded | None = None
) -> int:
    """Write a safetensors file piece by piece, cast to the given dtypes; returns its size in bytes.

    Memory: one piece, or one tensor where a function makes it. The space is reserved before anything is written, so
    that a full disk is found at once, and not as a broken mapping later. The file appears under its name when it is
    whole; whatever is raised (OSError), no part of it is left behind.
    """
    names = sorted(tensors, key=lambda name: -tensors[name][0].itemsize)  # stable: aligned, in the order of the model
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        dtype, shape, _ = tensors[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(_LENGTH.size + len(text)) % mmap.PAGESIZE)
    total = _LENGTH.size + len(text) + end
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(f.fileno(), 0, total)
            f.write(_LENGTH.pack(len(text)) + text)
            for name in names:
                dtype, _, source = tensors[name]
                tensor = source if isinstance(source, Tensor) else source()
                for start, stop in (pages or Pages()).walk(tensor, max(PIECE // tensor.element_size(), 1)):
                    piece = tensor.detach().reshape(-1)[start:stop].to("cpu", dtype)
                    f.write(piece.view(torch.uint8).numpy().data)
        os.replace(temporary, path)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from e
    finally:
        temporary.unlink(missing_ok=True)
    return total
