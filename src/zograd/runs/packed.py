"""A run in one small file: its tape, or the exact difference of its weights, with what names its base model.

Layout (little endian), version 1:

    b"ZOPACK" u16 version | sections | xz(u32 length | about as JSON | tape) | u64 length of the xz | SHA-256

The SHA-256 is that of all before it. The tape is lossless (`core/tape_columns.py`). "about" holds the settings, the
sections, and each tensor of the base model with the first 8 bytes of its SHA-256; "base" is a digest of them in full.
Sections are `Difference`s of tensors, and files of the run folder that a replay needs. Nothing in the file is code.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import mmap
import os
import struct
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zograd.core.tape import Tape
from zograd.core.tape_columns import from_columns, to_columns
from zograd.core.tape_records import TapeError
from zograd.files import replace, unfinished
from zograd.runs.errors import RunError
from zograd.runs.identity import SHOWN, base_digest
from zograd.runs.rundir import RunDirectory, check_meta
from zograd.stores import Store

MAGIC = b"ZOPACK"
VERSION = 1
MOST = 1 << 31
"""Bytes of text and tape above which a file is not unpacked."""
KEPT = ("zograd", "tape_version", "noise_version", "packages", "created", "settings", "trained", "data", "plugins")
"""What of run.json goes into the file."""
_XZ: dict[str, Any] = {"format": lzma.FORMAT_XZ, "check": lzma.CHECK_NONE, "preset": 9 | lzma.PRESET_EXTREME}
_END = struct.Struct("<Q32s")


def is_pack(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file that begins as a packed run does."""
    try:
        with open(path, "rb") as f:
            return f.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def holds_run(path: str | os.PathLike[str]) -> bool:
    """Whether there is a run: a folder with its run.json, or a packed run."""
    return (Path(path) / "run.json").exists() or is_pack(path)


def opened(path: str | os.PathLike[str]) -> RunDirectory:
    """The run in a folder, or in a packed file, to be read. Raises RunError if there is none, or if it is damaged."""
    return Packed.open(path) if is_pack(path) else RunDirectory.open(path)


class Packed(RunDirectory):
    """A packed run, read from its file.

    base: digest of the base model. difference: name of a trained tensor -> its section.
    """

    def __init__(self, path: Path, meta: dict[str, Any], tape: bytes, sections: Mapping[str, memoryview]) -> None:
        super().__init__(path, meta)
        self._tape, self._sections = tape, sections
        self.base: str = meta["base"]

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, write: bool = False) -> Packed:
        """Read a packed run. Raises RunError for a file that is damaged, or of another version."""
        file = Path(path)
        if write:
            raise RunError(f"{file} is a packed run, which cannot be continued; --resume takes the folder of a run")
        if not is_pack(file):
            raise RunError(f"{file} is no packed run (it does not begin with {MAGIC.decode()})")
        with open(file, "rb") as f:
            return cls._read(file, memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)))

    @classmethod
    def _read(cls, file: Path, data: memoryview) -> Packed:
        version = int.from_bytes(data[6:8], "little")
        if version != VERSION:
            raise RunError(f"{file} is a packed run of version {version}; this zograd reads version {VERSION}")
        end = len(data) - 32
        if end < 16 or hashlib.sha256(data[:end]).digest() != data[end:]:
            raise RunError(f"{file} is damaged (its checksum is another); copy it again from where it was made")
        try:
            (size, _) = _END.unpack_from(data, end - 8)
            start = end - 8 - size
            text = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(bytes(data[start : end - 8]), MOST)
            (length,) = struct.unpack_from("<I", text)
            meta = json.loads(text[4 : 4 + length])
            tape = from_columns(text[4 + length :])
            sections, at = {}, 8
            for name, count in meta["sections"]:
                sections[str(name)] = data[at : at + count]
                at += count
            if at != start or not isinstance(meta["base"], str) or not isinstance(meta["result"]["sha256"], str):
                raise ValueError("its parts have other lengths")
            named = ("name", "shape", "dtype", "sha256")
            meta["model"] = [dict(zip(named, entry, strict=True)) for entry in meta["model"]]
        except (TapeError, lzma.LZMAError, struct.error, ValueError, KeyError, TypeError, RecursionError) as e:
            raise RunError(f"{file} was written by no zograd ({type(e).__name__}: {str(e)[:80]})") from e
        return cls(file, check_meta(meta, file), tape, sections)

    @property
    def scratch(self) -> Path:
        return self.path.parent

    def tape(self, *, salvage: bool = False, fixed: Collection[str] = ()) -> Tape:
        """The tape, checked against the settings. It is whole, or the file would have been refused."""
        tape = Tape(self.path, self._tape)
        self.check_header(tape.header, fixed)
        return tape

    def attachment(self, name: str) -> bytes | None:
        found = self._sections.get(name)
        return None if found is None else bytes(found)

    @property
    def has_difference(self) -> bool:
        """Whether the file holds the difference of the weights, because the tape does not give them back."""
        return any(name.startswith("x.") for name in self._sections)

    def apply_difference(self, store: Store) -> None:
        """Bring the weights of a store from the base model to the end of the run, bit by bit.

        Raises RunError for a difference of other tensors; then nothing has been written.
        """
        mine = {f"x.{leaf.name}": leaf.tensor for leaf in store.leaves}
        there = {name for name in self._sections if name.startswith("x.")}
        if missing := sorted(mine.keys() ^ there):
            raise RunError(f"{self.path} does not fit the trained tensors: {missing[0]!r} is in only one of them")
        for name, tensor in mine.items():
            xor_(tensor, undeflated(self._sections[name], tensor, f"{self.path}: {name}"))


def write_pack(
    path: Path,
    directory: RunDirectory,
    tape: Tape,
    sha256: str,
    *,
    files: Iterable[str] = (),
    difference: Iterable[tuple[str, Tensor]] = (),
) -> None:
    """Write a run as one file, which gets its name when all of it is on the disk. Raises OSError, RunError.

    sha256: digest of the trained weights at the end of the tape. files: of the folder, with the matrices that a replay
    needs. difference: name and bits of each trained tensor, as integers, where the tape does not give the weights back.
    """
    about = {key: directory.meta[key] for key in KEPT if key in directory.meta}
    about |= {"result": {"steps": tape.steps, "sha256": sha256}, "base": base_digest(directory.meta["model"])}
    about["model"] = [[e["name"], e["shape"], e["dtype"], e["sha256"][:SHOWN]] for e in directory.meta["model"]]
    about["sections"] = sections = []
    temporary = unfinished(path)
    h = hashlib.sha256()
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as f:  # new: no link is followed

            def write(data: bytes) -> None:
                h.update(data)
                f.write(data)

            write(MAGIC + struct.pack("<H", VERSION))
            for name in files:
                if (data := directory.attachment(name)) is not None:
                    sections.append([name, len(data)])
                    write(data)
            for name, bits in difference:
                data = deflated(bits)
                sections.append([f"x.{name}", len(data)])
                write(data)
            text = json.dumps(about, separators=(",", ":")).encode()
            packed = lzma.compress(struct.pack("<I", len(text)) + text + to_columns(tape.bytes()), **_XZ)
            write(packed + struct.pack("<Q", len(packed)))
            f.write(h.digest())
        replace(temporary, path)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from e
    finally:
        temporary.unlink(missing_ok=True)


# ---- differences of bits ---------------------------------------------------------------------------------------------

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits_of(tensor: Tensor) -> Tensor:
    """The bits of floating-point numbers as integers of the same size (a view)."""
    return tensor.detach().view(_BITS[tensor.element_size()])


@torch.no_grad()
def xor_(tensor: Tensor, bits: Tensor) -> None:
    """The bits of a tensor xor `bits`, in place."""
    bits_of(tensor).bitwise_xor_(bits.view(tensor.shape).to(tensor.device))


def deflated(bits: Tensor) -> bytes:
    """Integers in planes of bytes, the lowest first, each deflated: the high ones are mostly zero."""
    planes = bits.cpu().contiguous().view(-1).numpy().view(np.uint8).reshape(-1, bits.element_size()).T
    packed = [zlib.compress(plane.tobytes(), 6) for plane in planes]
    return b"".join(struct.pack("<Q", len(p)) + p for p in packed)


def undeflated(data: memoryview, like: Tensor, what: str) -> Tensor:
    """The inverse of `deflated`, for a tensor of this size. Raises RunError for a difference of another one."""
    size, planes, at = like.element_size(), [], 0
    try:
        for _ in range(size):
            (length,) = struct.unpack_from("<Q", data, at)
            plane = zlib.decompressobj().decompress(data[at + 8 : at + 8 + length], like.numel() + 1)
            planes.append(np.frombuffer(plane, np.uint8))
            at += 8 + length
        rows = np.stack(planes).T if like.numel() else np.zeros((0, size), np.uint8)
    except (struct.error, zlib.error, ValueError) as e:
        raise RunError(f"{what} does not parse ({e}); copy the file again") from e
    if len(rows) != like.numel() or at != len(data):
        raise RunError(f"{what} is the difference of another tensor")
    return torch.from_numpy(np.ascontiguousarray(rows).reshape(-1)).view(_BITS[size])
