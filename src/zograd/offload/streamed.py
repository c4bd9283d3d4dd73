"""Weights in RAM that visit a device block by block, in two buffers: while one block runs, the next one is uploaded.

    upload   block k + 1: RAM -> buffer, on a stream of its own, once the block that used the buffer is done with it
    run      block k on the device; a pending move of the last step is made there first, once, unless it
             stays pending for some steps (`Store.deferring(merge=True)`)
    write    block k, if it was moved: buffer -> RAM, on a third stream, while block k + 1 runs

So each weight is copied to the device once an evaluation and back once a step. The device holds two blocks and the rest
of the model. ZO2 (arXiv 2503.12668) does this for models that it knows. Here it is hooks on any list of blocks, and a
noise key says which move is pending, so no random state has to be kept.

On a device that is the CPU the same code copies instead of uploading, in order, without streams.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from zograd.stores import Store

_ALIGNMENT = 256
"""Bytes at which tensors begin in a buffer: what a CUDA allocator aligns to."""


class Lane:
    """Work for a device in order: a CUDA stream of its own, or the caller's (`main`); nothing to order on a CPU.

    `with lane:` puts copies on it, `mark` gives an event for all that is on it, `after` makes it wait for an event of
    another, `finish` waits for it here.
    """

    def __init__(self, device: torch.device, *, main: bool = False) -> None:
        self.device, self.main = device, main
        cuda = device.type == "cuda"
        self._own = torch.cuda.Stream(device) if cuda and not main else None  # type: ignore[no-untyped-call]

    @property
    def stream(self) -> torch.cuda.Stream | None:
        return torch.cuda.current_stream(self.device) if self.main and self.device.type == "cuda" else self._own

    def __enter__(self) -> None:
        self._context: AbstractContextManager[Any] = (
            nullcontext() if self.stream is None else torch.cuda.stream(self.stream)
        )
        self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def mark(self) -> Any:
        return None if self.stream is None else self.stream.record_event()

    def after(self, event: Any) -> None:
        if self.stream is not None and event is not None:
            self.stream.wait_event(event)

    def finish(self) -> None:
        if self.stream is not None:
            self.stream.synchronize()


class Streamed:
    """The matrices of a list of blocks, kept in RAM (pinned for CUDA) and shown on `device` while their block runs.

    Parameters keep their identity; while their block does not run, their data is in RAM. `serve(store)` defers moves
    along noise until their block is on the device. The caller puts the rest of the model on the device.

    keep: tensors that do not travel, beside vectors (norm gains and biases, which are small).
    """

    def __init__(self, blocks: Sequence[nn.Module], device: str | torch.device, keep: Collection[Tensor] = ()) -> None:
        self.device = torch.device(device)
        kept = {id(t) for t in keep}
        self.parts = [[p for p in block.parameters() if p.ndim > 1 and id(p) not in kept] for block in blocks]
        self.homes: dict[int, tuple[Tensor, Tensor]] = {}  # identity -> the tensor, its data in RAM
        for p in (p for part in self.parts for p in part):
            data = p.detach().to("cpu").contiguous()
            data = data.pin_memory() if self.device.type == "cuda" and not data.is_pinned() else data
            p.data = data
            self.homes[id(p)] = p, data
        sizes = [sum(_room(p) for p in part) for part in self.parts]
        self.buffers = [torch.empty(max(sizes, default=0), dtype=torch.uint8, device=self.device) for _ in range(2)]
        self.held: list[int | None] = [None, None]  # the block in each buffer
        self.ready: list[Any] = [None, None]  # when its upload is done
        self.free: list[Any] = [None, None]  # when it may be overwritten
        self.shown: set[int] = set()  # identities of what is on the device now
        self.up, self.down, self.main = Lane(self.device), Lane(self.device), Lane(self.device, main=True)
        self.store: Store | None = None
        self.merging = False
        """Whether moves that may stay pending are made in this step, when their block is on the device."""
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda *_, k=number: self._begin(k))
            block.register_forward_hook(lambda *_, k=number: self._end(k), always_call=True)

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self.homes

    def serve(self, store: Store) -> None:
        """Defer the moves of `store` until their block is on the device. All other leaves move at once."""
        self.store = store
        store.deferred.start([leaf for leaf in store.leaves if leaf.tensor in self])

    # ---- a block comes and goes ------------------------------------------------------------------------------------

    def _views(self, number: int, slot: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The tensors of a block, and where they lie in a buffer."""
        at = 0
        for p in self.parts[number]:
            data = self.homes[id(p)][1]
            yield p, self.buffers[slot][at : at + data.nbytes].view(data.dtype).view(data.shape)
            at += _room(data)

    def _fetch(self, number: int, slot: int) -> None:
        """Start the upload of a block."""
        self.held[slot] = number
        self.up.after(self.free[slot])
        self.up.after(self.down.mark())  # a block that was just written back must have arrived
        with self.up:
            for p, view in self._views(number, slot):
                view.copy_(self.homes[id(p)][1], non_blocking=True)
        self.ready[slot] = self.up.mark()

    def _begin(self, number: int) -> None:
        with torch._C.DisableTorchFunction():  # a lens watches what the block does, not what is done for it
            if number not in self.held:
                self._fetch(number, 0)
            slot = self.held.index(number)
            self.main.after(self.ready[slot])
            for p, view in self._views(number, slot):
                p.data = view
                self.shown.add(id(p))
            following = (number + 1) % len(self.parts)
            if following not in self.held:
                self._fetch(following, 1 - slot)
            self._move(number)

    def _move(self, number: int) -> None:
        """Make the pending moves of this block, and write it back to RAM."""
        if self.store is None:
            return
        leaves = [leaf for p in self.parts[number] if (leaf := self.store.by_id.get(id(p))) is not None]
        moved = self.store.make_moves(
            [leaf for leaf in leaves if self.merging or not self.store.deferred.mergeable(leaf)]
        )
        if not moved:
            return
        self.down.after(self.main.mark())
        with self.down:
            for leaf in moved:
                self.homes[id(leaf.tensor)][1].copy_(leaf.tensor.data, non_blocking=True)

    def _end(self, number: int) -> None:
        with torch._C.DisableTorchFunction():
            for p in self.parts[number]:
                p.data = self.homes[id(p)][1]
                self.shown.discard(id(p))
            if number in self.held:
                self.free[self.held.index(number)] = self.main.mark()

    # ---- passes over the weights in RAM ----------------------------------------------------------------------------

    def walk(self, tensor: Tensor, size: int | None = None, *, write: bool = False) -> Iterator[tuple[int, int]]:
        """0..numel in pieces of `size` elements (None: in one). In RAM, what was written back has arrived, and what was
        uploaded is uploaded again, since a pass may write."""
        if tensor in self and id(tensor) not in self.shown:
            self.forget()
        n = tensor.numel()
        size = max(n, 1) if size is None else size
        return ((start, min(start + size, n)) for start in range(0, n, size))

    def forget(self) -> None:
        """The weights in RAM are what counts: wait for what is on its way there, and upload afresh."""
        self.up.finish()
        self.down.finish()
        self.held = [None, None]


def _room(t: Tensor) -> int:
    """Bytes that a tensor takes in a buffer."""
    return -(-t.nbytes // _ALIGNMENT) * _ALIGNMENT
