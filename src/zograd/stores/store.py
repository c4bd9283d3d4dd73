"""The store: the iterate and its slots as named tensors, read and moved block by block.

A query never writes to the weights: `Store.at(point)` puts a lens (`lens/lens.py`) between the loss and the weights,
so that whatever the loss raises, the weights are bit-identical afterwards, in every dtype. Weights change in
`Iterate` and nowhere else.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from zograd import kernels, noise
from zograd.core.slots import BFloat16, Bits, PerColumn, PerLeaf, PerRow
from zograd.core.vector import (
    HALF,
    Address,
    Array,
    Vector,
    accumulation_dtype,
    copied,
    fill_,
    noise_terms,
    of_signs,
)  # fmt: skip
from zograd.spaces import Euclidean, Space
from zograd.stores.deferred import DeferredMoves
from zograd.stores.gram import gram
from zograd.stores.iterate import Iterate, Rate
from zograd.stores.leaf import Block, Expanded, Leaf, by_row, tensor_bytes
from zograd.stores.leaves import Rounding, leaves_of
from zograd.stores.low_rank import sign_side, sign_sides
from zograd.stores.master_weights import expand

if TYPE_CHECKING:
    from zograd.offload.mapped import Offloaded

GRADIENT = "gradient"
"""The slot that a `GradientSource` fills: `Vector(((Slot("gradient"), 1.0),))`."""


class GradientSource(Protocol):
    """Computes gradients leaf by leaf, while the weights of the leaves before are moving (`zograd.blockwise`)."""

    def order(self, leaves: Sequence[Leaf]) -> Sequence[Leaf]:
        """The order in which the leaves are visited."""

    def gradient(self, leaf: Leaf) -> Tensor:
        """df/dx of a leaf, flat, in any floating-point dtype. Asked for once in each pass over the leaves.

        The store turns it into the coordinates of its space.
        """


class InputSource(Protocol):
    """Records what enters the layers whose weights are trained (`zograd.llm.inputs`)."""

    def watching(self) -> AbstractContextManager[None]:
        """Inside, forwards are recorded; at the end the slot "inputs" of the leaves is filled."""


class Store:
    """Named tensors under optimization, with the geometry and the rounding of their moves.

    tensors: name -> tensor (parameters of a model, or any tensors). Float32, float64, bfloat16 or float16, contiguous.
        A tensor that occurs under several names (tied weights) is one leaf.
    rounding: how a 16-bit weight takes a step smaller than its spacing. "stochastic": up or down at random with the
        right mean, drawn from counter noise, so replay is exact. "split": exact fp32 master weights, the high half in
        the tensor that the forward uses and the low half in two more bytes a weight. "nearest": torch's rounding.
        Vectors and scalars (norm gains, biases) in 16 bits are always split: a gain of 1 would not feel a probe.
    groups: the group of each tensor (for its own learning rate), by name; default all in group 0.
    decays: factor on the weight decay of each group.
    pages: where tensors are offloaded. Views of mapped files (`offload/mapped.py`): a pass over the weights reads pages
        ahead and drops them after use. Or tensors in RAM that are copied to a device (`offload/streamed.py`).

    The store does not hold buffers: BatchNorm in train mode updates its running statistics at every evaluation.
    Memory beyond the weights: slots that rules declare, `low`, one tile of weights in use (`lens/lens.py`).
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        space: Space | None = None,
        rounding: Rounding = "stochastic",
        groups: Mapping[str, int] | None = None,
        decays: Sequence[float] = (1.0,),
        pages: Offloaded | None = None,
    ) -> None:
        if rounding not in ("stochastic", "split", "nearest"):
            raise ValueError(f"unknown rounding {rounding!r}; use 'stochastic', 'split' or 'nearest'")
        self.space: Space = space if space is not None else Euclidean()
        self.rounding: Rounding = rounding
        self.decays = tuple(decays)
        self.pages = pages
        self.source: GradientSource | None = None
        """Fills the slot "gradient" of a leaf when it is visited; nothing of it is kept."""
        self.inputs: InputSource | None = None
        """Fills the slot "inputs" of the leaves from a forward."""
        self.deferred = DeferredMoves(self)
        self.leaves, self.by_id, self._aliases = leaves_of(tensors, self.space, rounding, groups or {})
        self.dim = sum(leaf.total for leaf in self.leaves)
        self._held = max(sum(leaf.numel for leaf in self.leaves), 1)
        self.escaped: set[int] = set()
        self.seen: set[int] = set()
        self.pointed: set[int] = set()
        self._scratch: dict[tuple[torch.dtype, torch.device, int], Tensor] = {}
        self._warned_small, self._most_moved = False, 0.0
        self.require(self.space.slots)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: deferred moves are made, and tensors known by identity go beside their leaves."""
        self.make_moves()
        found = [(tensor, self.by_id[id(tensor)]) for tensor in self.tensors]
        return {**self.__dict__, "by_id": found, "_scratch": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.by_id = {id(tensor): leaf for tensor, leaf in state["by_id"]}
        for alias in self._aliases:  # torch copies tensors that share memory apart
            alias.data = self.by_id[id(alias)].tensor.detach()

    @property
    def sharded(self) -> bool:
        """Whether other processes hold parts of the weights, so that each forward waits for theirs."""
        return any(leaf.portion is not None for leaf in self.leaves)

    def grouped(self, leaf: Leaf) -> bool:
        """Whether passes over this leaf are made together with those over others, in one launch."""
        return noise.grouped(leaf.tensor.device) and leaf.portion is None and self.pages is None and leaf.space.flat

    @property
    def tensors(self) -> list[Tensor]:
        """The trained tensors, tied ones under each of their names."""
        return [*(leaf.tensor for leaf in self.leaves), *self._aliases]

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the leaves, in order."""
        return tuple(leaf.shape for leaf in self.leaves)

    @cached_property
    def groups(self) -> int:
        """How many groups the leaves are of: the highest number of one, plus 1."""
        return 1 + max([leaf.group for leaf in self.leaves])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the leaves, in order."""
        return tuple([leaf.name for leaf in self.leaves])

    # ---- slots -------------------------------------------------------------------------------------------------

    def require(self, slots: Mapping[str, float]) -> set[str]:
        """Allocate slots once, filled with their initial values; returns the names of those that are new.

        A slot has one number an element of the weights in the accumulation dtype; `PerRow`, `PerColumn`, `PerLeaf`,
        `BFloat16` and `Bits` values make smaller ones.
        """
        new = set()
        for name, value in slots.items():
            for leaf in self.leaves:
                if name not in leaf.slots:
                    new.add(name)
                    small = {Bits: torch.bool, BFloat16: torch.bfloat16}
                    dtype = small.get(type(value), accumulation_dtype(leaf.dtype))
                    shape: tuple[int, ...] = (leaf.numel,)
                    if isinstance(value, PerRow):
                        shape = (leaf.matrix_shape[0], value.width)
                    elif isinstance(value, PerColumn):
                        shape = (value.width, leaf.matrix_shape[1])
                    elif isinstance(value, PerLeaf):
                        shape = (1, 1)
                    fill = bool(value) if isinstance(value, Bits) else float(value)
                    leaf.slots[name] = torch.full(shape, fill, dtype=dtype, device=leaf.tensor.device)
        return new

    def assign(self, writes: Mapping[str, Vector]) -> None:
        """slot <- vector, all at once, evaluated with the old slots; "x" is the iterate, which a copy restores.

        A slot of another size than the weights can be set to zero only, by an empty vector.
        """
        emptied = [slot for slot, vector in writes.items() if not vector and slot != "x"]
        writes = {slot: vector for slot, vector in writes.items() if slot not in emptied}
        for block in self.blocks(*writes.values()) if writes else ():
            for vector, v in zip(writes.values(), block.v, strict=True):
                if (name := copied(vector)) is not None:  # a sum would lose the sign of 0
                    v.copy_(self.master(block.leaf, block.start, block.stop) if name == "x" else block.slots[name])
            for slot, v in zip(writes, block.v, strict=True):
                block.restore_(v) if slot == "x" else block.slots[slot].copy_(v)
        for leaf in self.leaves:
            for slot in emptied:
                leaf.slots[slot].zero_()

    # ---- reading -----------------------------------------------------------------------------------------------

    def blocks(self, *vectors: Vector, whole_leaf: bool = False, whole_row: bool = False) -> Iterator[Block]:
        """The leaves in order, in chunks: weights, vectors' elements in a reused workspace, slots. No allocation.

        whole_leaf: one block a leaf (for matrix operations), with a workspace as large as the largest leaf.
        whole_row: blocks of whole rows (first axis by the rest), at least one, for sums over rows.
        """
        self.make_moves()
        if (whole_leaf or whole_row) and self.sharded:
            raise TypeError("this method looks at whole matrices or rows, and other processes hold parts of them")
        source = self.source if any(GRADIENT in e.reads for v in vectors for e, _ in v.terms) else None
        for leaf in self.leaves if source is None else source.order(self.leaves):
            gradient = None if source is None else self._in_frame(leaf, source.gradient(leaf))
            flat, step = leaf.flat, leaf.chunk(whole_leaf, max(leaf.matrix_shape[1], 1) if whole_row else 1)
            for start, stop in self.pieces(leaf, step):
                slots = self._slots(leaf, start, stop)
                if gradient is not None:
                    slots[GRADIENT] = gradient[start:stop]
                sources = self._sources(leaf, start, stop, slots, vectors)
                at = Address(leaf.index, leaf.place(start), leaf.shape)
                v = [
                    fill_(self.scratch(leaf, stop - start, use=1 + k), vector, at, sources)
                    for k, vector in enumerate(vectors)
                ]
                yield Block(leaf, start, flat[start:stop], v, slots)

    def _in_frame(self, leaf: Leaf, gradient: Tensor) -> Tensor:
        """df/dx of a leaf in frame coordinates."""
        if leaf.space.flat:
            return gradient
        return leaf.frame_gradient(gradient, self.master(leaf), self._slots(leaf, 0, leaf.numel))

    def pieces(self, leaf: Leaf, size: int | None = None, *, write: bool = False) -> Iterator[tuple[int, int]]:
        """Start and stop of pieces of `size` elements; None: whole, or in pieces that suit where it is offloaded."""
        if self.pages is not None:
            return self.pages.walk(leaf.tensor, size, write=write)
        if leaf.portion is not None:
            return leaf.runs(0, leaf.numel, size)
        if size is None:
            return iter(((0, leaf.numel),) if leaf.numel else ())
        return ((start, min(start + size, leaf.numel)) for start in range(0, leaf.numel, size))

    def _slots(self, leaf: Leaf, start: int, stop: int) -> MutableMapping[str, Tensor]:
        """The slots on elements start..stop; those with one number a row or leaf expanded to them."""
        slots: dict[str, Tensor] = {}
        rows: dict[str, Callable[[], Tensor]] = {}
        for name, slot in leaf.slots.items():
            if slot.ndim == 1:
                slots[name] = slot[start:stop]
            elif slot.shape == (1, 1):
                slots[name] = slot.view(1).expand(stop - start)
            elif slot.shape == (leaf.matrix_shape[0], 1):
                rows[name] = partial(by_row, slot.view(-1), leaf.matrix_shape[1], start, stop)
        return Expanded(slots, rows) if rows else slots

    def _sources(
        self, leaf: Leaf, start: int, stop: int, slots: MutableMapping[str, Tensor], vectors: Sequence[Vector]
    ) -> Mapping[str, Tensor]:
        """The tensors that vectors may name: the slots, whole where blocks do not show them, and the iterate."""
        named = {name for v in vectors for e, _ in v.terms for name in e.reads} - slots.keys()
        found = {name: leaf.slots[name] for name in named if name in leaf.slots}
        if "x" in named:
            found["x"] = self.master(leaf, start, stop)
        return ChainMap(found, slots) if found else slots

    def master(self, leaf: Leaf, start: int = 0, stop: int | None = None) -> Tensor:
        """The weights in the accumulation dtype, with the low halves where they are split (a fresh tensor)."""
        self.make_moves([leaf])
        return expand(leaf.flat[start:stop], None if leaf.low is None else leaf.low[start:stop])

    def gram(self, vectors: Sequence[Vector]) -> Array:
        """<v_j, v_k> in frame coordinates for all pairs, in one pass. Exact integer sums between noise directions."""
        return gram(self, vectors)

    def scratch(self, leaf: Leaf, numel: int, use: int, dtype: torch.dtype | None = None) -> Tensor:
        """Workspace number `use` on the leaf's device, allocated once and grown when a larger block comes."""
        dtype = dtype if dtype is not None else accumulation_dtype(leaf.dtype)
        key = (dtype, leaf.tensor.device, use)
        buffer = self._scratch.get(key)
        if buffer is None or buffer.numel() < numel:
            with torch.inference_mode(False):  # the next query may come from outside of it
                self._scratch[key] = buffer = torch.empty(numel, dtype=dtype, device=leaf.tensor.device)
        return buffer[:numel]

    def point_(self, out: Tensor, leaf: Leaf, point: Vector, start: int = 0, stop: int | None = None) -> Tensor:
        """out <- the elements start..stop of leaf at Retr_x(point), rounded to nearest in out's dtype.

        In a space that couples elements, start and stop bound whole rows or the whole leaf.
        """
        pending = self.deferred.sides(leaf)
        terms, others = noise_terms(point, on_vector=leaf.matrix_shape[1] == 1)
        stop = leaf.numel if stop is None else stop
        if leaf.space.flat and not (others or pending) and out.dtype == leaf.dtype and leaf.low is None:
            flat = leaf.flat
            for a, b in leaf.runs(start, stop):
                noise.combine(out[a - start : b - start], flat[a:b], terms=terms, leaf=leaf.index, start=leaf.place(a))
            return out
        if leaf.space.flat and not terms and leaf.low is None and all(of_signs(e) for e, _ in others):
            sides = [*map(sign_side, pending), *sign_sides(others, leaf)]
            flat, columns = leaf.flat, leaf.matrix_shape[1]
            made = [
                kernels.add_outer(
                    out[a - start : b - start], flat[a:b], leaf.place(a), columns, 1.0, sides,
                    one_by_one=bool(pending) and leaf.dtype == torch.float32,
                )
                for a, b in leaf.runs(start, stop)
            ]  # fmt: skip
            if None not in made:
                return out
        plain = leaf.low is None and not pending and out.dtype == leaf.dtype and leaf.dtype not in HALF
        if plain and leaf.space.adds and point and out.data_ptr() != leaf.flat.data_ptr():
            for a, b in leaf.runs(start, stop, leaf.chunk()):
                part, slots = out[a - start : b - start], self._slots(leaf, a, b)
                sources = self._sources(leaf, a, b, slots, (point,))
                fill_(part, point, Address(leaf.index, leaf.place(a), leaf.shape), sources)
                leaf.space.lift_(part, part, slots).add_(leaf.flat[a:b])
            return out
        for a, b in leaf.runs(start, stop, leaf.chunk()):
            x = expand(leaf.flat[a:b], None if leaf.low is None else leaf.low[a:b])
            at = Address(leaf.index, leaf.place(a), leaf.shape)
            for iterate, direction in self.deferred.moves(leaf) if pending else ():
                z = self.scratch(leaf, b - a, use=0)
                fill_(z, direction * -iterate.rates[leaf.group].lr, at, {})
                x.add_(z)
            if point:
                slots, z = self._slots(leaf, a, b), self.scratch(leaf, b - a, use=0)
                leaf.retract_(x, fill_(z, point, at, self._sources(leaf, a, b, slots, (point,))), slots)
            out[a - start : b - start].copy_(x)
        return out

    # ---- standing at a point -----------------------------------------------------------------------------------

    @contextmanager
    def at(self, point: Vector) -> Iterator[None]:
        """Inside, the loss sees Retr_x(point); the weights themselves are not written.

        Leaves that the loss reads without torch's function dispatch (scripted modules, foreign kernels) are found on
        the first query: they get `escaped`, and are then perturbed by save, write and copy back. `settled()` tells
        whether the value just obtained may be used.
        """
        from zograd.lens.lens import Lens

        saved: list[tuple[Leaf, Tensor]] = []
        try:
            for index in sorted(self.escaped):
                leaf = self.leaves[index]
                self.make_moves([leaf])
                saved.append((leaf, leaf.flat.clone()))
                self.point_(leaf.flat, leaf, point)
            if saved and self.pages is not None:
                self.pages.forget()
            with Lens(self, point):
                yield
        finally:
            for leaf, copy in saved:
                leaf.flat.copy_(copy)
            if saved and self.pages is not None:
                self.pages.forget()

    def settled(self) -> bool:
        """After a query: True, or False when leaves were found that the lens did not see (evaluate once more)."""
        unseen = [
            leaf
            for leaf in self.leaves
            if leaf.index not in self.escaped and (leaf.index not in self.seen or leaf.index in self.pointed)
        ]
        if not unseen:
            return True
        self.escaped.update(leaf.index for leaf in unseen)
        names = ", ".join(leaf.name for leaf in unseen[:3]) + (", ..." if len(unseen) > 3 else "")
        why = "they are unused, or read by compiled code"
        if len(unseen) == len(self.leaves):
            why += ", or the loss is computed outside of the function that returns it"
        warnings.warn(
            f"the loss did not read {len(unseen)} of {len(self.leaves)} trained tensors through torch functions "
            f"({names}): {why}. They are perturbed by copy, which is exact but needs their size in extra memory; "
            f"leave them out of the selection if they are unused.",
            stacklevel=3,
        )
        return False

    # ---- moving ------------------------------------------------------------------------------------------------

    def iterate(self, rates: Sequence[Rate], key: int | Callable[[], int]) -> Iterate:
        """The iterate of one step, for a rule to move; `key` draws the stochastic rounding."""
        return Iterate(self, rates, key)

    @contextmanager
    def deferring(self, *, merge: bool = False, finish: bool = True) -> Iterator[None]:
        """Inside, moves along noise are deferred: each leaf moves when the next forward reads it, in the same pass.

        merge: moves along one product of signs each (`RankOne`) may stay pending for up to 8 steps; see
        `stores/deferred.py`. finish: whether pending moves are made at the end.

        Everything that reads through the store (queries, `blocks`, `state_dict`, `digest`) finds the weights moved.
        Code that reads the tensors themselves calls `make_moves()` first. `health` tells of the step before.
        """
        before = self.deferred.leaves, self.deferred.merge
        self.deferred.start(self.leaves, merge=merge)
        try:
            yield
        finally:
            self.deferred.leaves, self.deferred.merge = before
            if finish:
                self.make_moves()

    def make_moves(self, leaves: Sequence[Leaf] | None = None) -> list[Leaf]:
        """Make the moves that are pending (`deferring`), of these leaves or of all; returns the leaves that moved."""
        return self.deferred.make(leaves)

    def health(self, iterate: Iterate, *, warn: bool = True) -> float:
        """Fraction of the weights whose bits the step changed; warns once when steps vanish below the spacing.

        warn: False for a step that is meant to be short, or of length 0, whose points all had the same value.
        Where moves are deferred: of the last step that is made at every leaf (0 before there is one).
        """
        complete = self.deferred.complete(iterate)
        if complete is None:
            return 0.0
        iterate = complete
        fraction = iterate.counted() / self._held
        self._most_moved = max(self._most_moved, fraction)  # one step may be short by chance
        if not warn or self._warned_small or not iterate.moved or self._most_moved >= 0.02:
            return fraction
        rounded = sum(leaf.numel for leaf in self.leaves if leaf.dtype in HALF and leaf.low is None)
        if not rounded or rounded < self.dim // 2:
            return fraction
        self._warned_small = True
        remedy = "rounding='split' (two more bytes a trained weight) or a larger lr"
        warnings.warn(
            f"this step changed {fraction:.2%} of the 16-bit weights: it is far below their spacing, and rounding "
            f"noise outweighs it ({self.rounding} rounding). Use {remedy}.",
            stacklevel=4,
        )
        return fraction

    # ---- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, low halves and slots, by name (references, not copies)."""
        self.make_moves()
        if self.pages is not None:
            self.pages.forget()
        state = {f"x.{leaf.name}": leaf.tensor.detach() for leaf in self.leaves}
        state |= {f"low.{leaf.name}": leaf.low for leaf in self.leaves if leaf.low is not None}
        state |= {f"slot.{name}.{leaf.name}": slot for leaf in self.leaves for name, slot in leaf.slots.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy back what `state_dict` gave; refuses, before anything is written, what does not fit."""
        mine = self.state_dict()
        if missing := sorted(mine.keys() ^ state.keys()):
            raise ValueError(f"the saved state does not fit this store: {missing[0]!r} is in only one of them")
        for name, tensor in mine.items():
            if tensor.shape != state[name].shape or tensor.dtype != state[name].dtype:
                raise ValueError(
                    f"{name!r} is {tuple(tensor.shape)} {tensor.dtype} here, but {tuple(state[name].shape)} "
                    f"{state[name].dtype} in the saved state"
                )
        for name, tensor in mine.items():
            tensor.copy_(state[name])

    def digest(self) -> str:
        """SHA-256 over the weights in order of the leaves."""
        h = hashlib.sha256()
        self.make_moves()
        for leaf in self.leaves:
            for start, stop in self.pieces(leaf):
                h.update(tensor_bytes(leaf.flat[start:stop]))
        return h.hexdigest()
