"""The processes that evaluate one run together, and the messages that they exchange.

In each exchange a process sends one block: 8 bytes of status (2 bits of flags, 6 bits for the number of points that
share a forward, 7 bytes of a hash of all records so far), and its losses as float64. Blocks are gathered, not reduced,
so every process adds the same numbers in the same order.
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
"""Flags of a block: an evaluation raised in this process; it was told to stop and asks to stop after this step."""

LIMIT = 2
"""First bit of the largest number k of points that share a forward: 0 for no limit, else k + 1."""

HEADER = 8


class PeersError(RuntimeError):
    """Another process failed or is gone. No weight moved in this step."""


class PeersDisagree(RuntimeError):
    """Processes that must be bit-identical differ."""


class Peers:
    """A process group seen from one of its processes. `Peers()` is a single process, for which every method is free.

    group: a group of torch.distributed (gloo or nccl) with one process for each replica of the model; if weights are
        split over processes, the group of those that evaluate different things. None: a single process.

    rank, world: the number of this process, and the number of processes. sent: bytes that this process has sent in
    exchanges of losses: its block, once for each other process. own_limit: a function that returns the largest number
    of points that share a forward in this process, -1 for no limit. limit: the smallest limit of all processes at the
    last exchange.

    A broken connection and an exchange that takes longer than the timeout of the group raise PeersError in all
    processes that wait.
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

    # ---- messages of a step --------------------------------------------------------------------------------------

    def exchange(self, losses: Sequence[float], width: int, *, failed: bool = False) -> list[tuple[float, ...]]:
        """`width` float64 numbers of every process, by rank; missing ones are NaN.

        failed: an evaluation raised in this process; the others then raise PeersError.
        Raises PeersDisagree if the histories of the processes differ.
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

        split: weights are split over processes: then the share of weights that moved, which each process counts for its
            own, is left out.
        """
        data = record if isinstance(record, bytes) else pack_record(replace(record, moved=0.0) if split else record)
        self._history = hashlib.blake2b(self._history + data, digest_size=HEADER - 1).digest()
        self.records += isinstance(record, Record)

    def stopping(self, wish: bool) -> bool:
        """Whether to stop now.

        wish: this process wants to stop. A single process stops at once. With several, the wish is sent in the next
            exchange, so that all stop after the same step.
        """
        self._wish = wish
        return wish if self.world == 1 else self._stop

    # ---- messages between steps ----------------------------------------------------------------------------------

    def broadcast(self, data: bytes = b"") -> bytes:
        """The bytes that rank 0 passes, in all processes."""
        if self.world == 1:
            return data
        (size,) = struct.unpack("<Q", self._from_0(struct.pack("<Q", len(data)), 8))
        return self._from_0(data, size)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes: exact if at most one process has a nonzero number at each place."""
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
        """A block without exchanges, after which all processes continue or none.

        An exception is raised again where it came from; the other processes raise PeersError.
        """
        try:
            yield
        except BaseException:
            if self.world > 1:
                self._gather(b"\1")
            raise
        if self.world > 1 and (bad := [k for k, b in enumerate(self._gather(b"\0")) if b[0]]):
            raise PeersError(f"rank {bad[0]} raised an error in {what}; see its output")

    # ---- transport -----------------------------------------------------------------------------------------------

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
