"""The processes that evaluate one run together, and all that they tell each other.

A process sends one block at each exchange: 8 bytes of status (2 bits of flags, 6 of how many points share a forward
there, 7 bytes of a hash of all records so far) and its losses as float64. Blocks are gathered, not reduced, so that
every process adds the same numbers in the same order.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from zograd.core.run import Record
from zograd.core.tape import pack_record

FAILED, STOP = 1, 2
"""Flags of a block: the process raised in its evaluations; it was told to stop and wants to, after this step."""

LIMIT = 2
"""The bit from which on a block says how many points share a forward at most: 0 for no limit, k + 1 for k."""

HEADER = 8


class PeersError(RuntimeError):
    """Another process failed, or is gone; nothing moved in this step."""


class PeersDisagree(RuntimeError):
    """Processes that ought to be bit-identical are not."""


class Peers:
    """A process group seen from one of its processes; `Peers()` is a process alone, for which all of this is free.

    group: of torch.distributed, gloo or nccl, one process a replica of the model (with weights split over processes:
        the processes that differ in what they evaluate). None: alone.

    rank, world: the number of this process, and how many there are. sent: payload in bytes that this process handed to
    exchanges of losses: its block once for each of the others. own_limit: tells how many points share a forward in this
    process at most, -1 for any number; limit: the least of all processes at the last exchange.

    Whatever breaks a connection, or takes longer than the timeout of the group, raises PeersError in all that wait.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.world = 1 if group is None else dist.get_world_size(group)
        nccl = group is not None and dist.get_backend(group) == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        self.sent = 0
        self.records = 0
        self.own_limit: Callable[[], int] = lambda: -1
        self.limit = -1
        self._history = bytes(HEADER - 1)
        self._wish = self._stop = False

    # ---- what a step tells ---------------------------------------------------------------------------------------

    def exchange(self, losses: Sequence[float], width: int, *, failed: bool = False) -> list[tuple[float, ...]]:
        """`width` float64 of every process, by rank; missing ones are NaN.

        Raises PeersError when another process says that it failed, PeersDisagree when their histories differ.
        """
        filled = (*losses, *[math.nan] * (width - len(losses)))
        if self.world == 1:
            self.limit = self.own_limit()
            return [filled]
        flags = FAILED * failed | STOP * self._wish | min(self.own_limit() + 1, 63) << LIMIT
        block = bytes([flags]) + self._history + struct.pack(f"<{width}d", *filled)
        self.sent += len(block) * (self.world - 1)
        blocks = self._gather(block)
        histories = [b[1:HEADER] for b in blocks]
        if len(set(histories)) > 1:
            different = [k for k, h in enumerate(histories) if h != histories[0]]
            raise PeersDisagree(
                f"after {self.records} steps the tape of rank {different[0]} is not that of rank 0: their machines "
                f"compute differently, or were started differently. Run all ranks with the same versions, threads and "
                f"kind of hardware; the tape of rank 0 is intact up to there"
            )
        self._stop = any(b[0] & STOP for b in blocks)
        self.limit = min((b[0] >> LIMIT for b in blocks if b[0] >> LIMIT), default=0) - 1
        bad = [k for k, b in enumerate(blocks) if b[0] & FAILED]
        if bad and not failed:
            raise PeersError(f"rank {bad[0]} raised an error while it evaluated (see its output); nothing moved")
        return [struct.unpack(f"<{width}d", b[HEADER:]) for b in blocks]

    def remember(self, record: Record | bytes, *, split: bool = False) -> None:
        """Add a record (or the bytes of a whole tape) to the history that exchanges compare.

        With the share of weights that moved, unless they are `split`: then each process counts those that it holds.
        """
        data = record if isinstance(record, bytes) else pack_record(replace(record, moved=0.0) if split else record)
        self._history = hashlib.blake2b(self._history + data, digest_size=HEADER - 1).digest()
        self.records += isinstance(record, Record)

    def stopping(self, wish: bool) -> bool:
        """Whether to stop: alone at once, otherwise when the last exchange carried the wish of any process.

        A wish is sent with the next exchange, so that all stop after the same step.
        """
        self._wish = wish
        return wish if self.world == 1 else self._stop

    # ---- what is told beside steps -------------------------------------------------------------------------------

    def broadcast(self, data: bytes = b"") -> bytes:
        """The bytes that rank 0 passes, for all."""
        if self.world == 1:
            return data
        (size,) = struct.unpack("<Q", self._from_0(struct.pack("<Q", len(data)), 8))
        return self._from_0(data, size)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes (of numbers, where all but one process hold zeros: those, exactly)."""
        if self.world == 1:
            return tensor
        with self._watched("the sum of the scores"):
            mine = tensor.to(self.device, copy=True)
            dist.all_reduce(mine, group=self.group)
            return mine.to(tensor.device)

    def compare(self, digest: str, what: str) -> None:
        """Raise PeersDisagree in every process unless all pass the same text."""
        digests = self._gather(hashlib.blake2b(digest.encode(), digest_size=8).digest())
        if different := [k for k, d in enumerate(digests) if d != digests[0]]:
            raise PeersDisagree(f"{what} of rank {different[0]} differ from those of rank 0")

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """A block without exchanges, after which all go on, or none: who raised passes that on, others PeersError."""
        try:
            yield
        except BaseException:
            if self.world > 1:
                self._gather(b"\1")
            raise
        if self.world > 1 and (bad := [k for k, b in enumerate(self._gather(b"\0")) if b[0]]):
            raise PeersError(f"rank {bad[0]} raised an error in {what}; see its output")

    # ---- bytes -----------------------------------------------------------------------------------------------------

    def _gather(self, block: bytes) -> list[bytes]:
        if self.world == 1:
            return [block]
        with self._watched("the losses of the others"):
            mine = torch.frombuffer(bytearray(block), dtype=torch.uint8).to(self.device)
            blocks = [torch.empty_like(mine) for _ in range(self.world)]
            dist.all_gather(blocks, mine, group=self.group)
            return [b.cpu().numpy().tobytes() for b in blocks]

    def _from_0(self, data: bytes, size: int) -> bytes:
        if not size:
            return b""
        with self._watched("what rank 0 sends at the start"):
            source = bytearray(data) if self.rank == 0 else bytearray(size)
            buffer = torch.frombuffer(source, dtype=torch.uint8).to(self.device)
            dist.broadcast(buffer, group=self.group, group_src=0)
            return buffer.cpu().numpy().tobytes()

    @contextmanager
    def _watched(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as e:
            raise PeersError(
                f"rank {self.rank} waited for {what} and lost them ({str(e).splitlines()[0][:200]}); nothing moved. "
                f"Start again with --resume, or let torchrun do it (--max-restarts)"
            ) from e
