"""Deferred moves: the move of a step is made at each leaf when that leaf is next read, in the same pass over it.

A move along noise costs one pass over the weights, and so does the next probe, which regenerates x + mu v. Made
together they cost one pass. A deferred move gives the bits of a move that is made at once. There are two savings:

    fused    The next pass that makes both sides of a pair x + v, x - v makes the one pending move too (`fused`).
    merged   Moves along one product of signs each (`RankOne`) may stay pending for up to `LIMIT` steps. A forward adds
             them to x W^T as it adds the probes (`sides`), and later one pass makes all of them.

With `merge` the last bits of a loss depend on when the moves are made. No read decides that: a caller makes them at
steps that a resumed run knows (`Store.make_moves`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zograd import kernels, noise
from zograd.core.vector import Basis, Vector, noise_terms, of_signs
from zograd.stores.iterate import Iterate
from zograd.stores.leaf import Leaf
from zograd.stores.low_rank import Drawn, SignSide, sign_side

if TYPE_CHECKING:
    from zograd.stores import Store

LIMIT = 8
"""Steps whose moves of rank one may be pending at a matrix."""

Move = tuple[Iterate, Vector]
"""The iterate of a step and the direction that its rule gave."""


@dataclass
class FusedMove:
    """A pending move that is made together with the pairs of the next probe; `done` elements of the leaf have moved."""

    iterate: Iterate
    direction: Vector
    leaf: Leaf
    done: int = 0

    def pair(self, plus: Tensor, minus: Tensor, terms: list[noise.Term]) -> None:
        """Move the next elements, and make both sides plus, minus <- x + v, x - v of where they now stand."""
        self.iterate.pair(self.direction, self.leaf, self.done, plus, minus, terms)
        self.done += plus.numel()


class DeferredMoves:
    """The pending moves of one store. Users meet it as the context manager `Store.deferring`.

    leaves: the numbers of the leaves that defer their moves. merge: whether moves of rank one may stay pending for
    several steps.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.leaves: frozenset[int] = frozenset()
        self.merge = False
        self.factors: dict[Basis, Drawn] = {}
        """Factors that the last forward in branches drew: pending moves are along the same directions."""
        self._pending: dict[int, list[Move]] = {}
        self._sides: dict[int, list[kernels.Side]] = {}
        self._complete: Iterate | None = None

    def start(self, leaves: Collection[Leaf], *, merge: bool = False) -> None:
        """From now on these leaves, and no others, defer their moves."""
        self.leaves, self.merge = frozenset(leaf.index for leaf in leaves), merge

    def take(self, iterate: Iterate, direction: Vector, leaf: Leaf) -> bool:
        """Take the move of a leaf over, to be made later; False where it is better made now."""
        if leaf.index not in self.leaves:
            return False
        if self.store.grouped(leaf) and not (self.merge and leaf.matrix_shape[1] > 1):
            return False  # one launch moves all such leaves now
        self._pending.setdefault(leaf.index, []).append((iterate, direction))
        iterate.left += 1
        return True

    # ---- what is pending -----------------------------------------------------------------------------------------

    def moves(self, leaf: Leaf) -> Sequence[Move]:
        """The pending moves of a leaf, in order."""
        return self._pending.get(leaf.index, ())

    def sides(self, leaf: Leaf) -> list[kernels.Side]:
        """The moves that stay pending while a leaf is read; the reader adds them. Moves that may not stay are made."""
        if not self._pending:
            return []
        if (sides := self.mergeable(leaf)) is None:
            self.make([leaf])
        return sides or []

    def mergeable(self, leaf: Leaf) -> list[kernels.Side] | None:
        """The pending moves of a matrix by their factors, where all may stay: few, each along one product of signs."""
        moves = self._pending.get(leaf.index)
        if not moves:
            return []
        if not self.merge or len(moves) > LIMIT or leaf.matrix_shape[1] == 1:
            return None
        known = self._sides.setdefault(leaf.index, [])
        for iterate, direction in moves[len(known) :]:
            rate = iterate.rates[leaf.group]
            if len(direction.terms) != 1 or not of_signs(direction.terms[0][0]) or rate.weight_decay:
                return None
            ((e, c),) = direction.terms
            if e not in self.factors:
                self.factors[e] = Drawn(self.store.leaves, e)
            factors = self.factors[e][leaf.index]
            assert factors is not None  # products of signs have them on every matrix
            known.append(((-rate.lr * c,), factors))
        return known

    def complete(self, iterate: Iterate) -> Iterate | None:
        """The last iterate whose move is made at every leaf; `iterate` is the newest one. None before there is one."""
        if not iterate.left:
            self._complete = iterate
        return self._complete

    # ---- making them ---------------------------------------------------------------------------------------------

    def make(self, leaves: Sequence[Leaf] | None = None) -> list[Leaf]:
        """Make the pending moves of these leaves, or of all; returns the leaves that moved."""
        if not self._pending:
            return []
        moved = [leaf for leaf in (self.store.leaves if leaves is None else leaves) if leaf.index in self._pending]
        for leaf in moved:
            known = (self.mergeable(leaf) if leaf.index in self._sides else None) or []
            sides = [*map(sign_side, known)]
            moves = self._pending.pop(leaf.index)
            self._sides.pop(leaf.index, None)
            if sides and self._in_one_pass(leaf, moves, sides):
                continue
            for start, stop in self.store.pieces(leaf, leaf.block if len(moves) > 1 else None, write=True):
                for k, (iterate, direction) in enumerate(moves):
                    iterate.add(direction, leaf, start, stop, sides[k : k + 1])
            self._count(moves)
        if not self._pending:
            self.factors = {}
        return moved

    @contextmanager
    def fused(self, leaf: Leaf) -> Iterator[FusedMove | None]:
        """The one pending move along noise, for a reader that goes over the whole leaf now; None: there is none.

        What the reader has not made of it at the end, whatever happens, is made then.
        """
        moves = self._pending.get(leaf.index, [])
        plain = len(moves) == 1 and not noise_terms(moves[0][1], on_vector=leaf.matrix_shape[1] == 1)[1]
        whole = leaf.space.flat and leaf.low is None and leaf.portion is None and self.store.pages is None
        if not (plain and whole):
            yield None
            return
        ((iterate, direction),) = self._pending.pop(leaf.index)
        move = FusedMove(iterate, direction, leaf)
        try:
            yield move
        finally:
            if move.done < leaf.numel:
                iterate.add(direction, leaf, move.done, leaf.numel)
            self._count(((iterate, direction),))

    def _count(self, moves: Sequence[Move]) -> None:
        """One more leaf has made these moves."""
        for iterate, _ in moves:
            iterate.left -= 1
            self._complete = self._complete if iterate.left else iterate

    def _in_one_pass(self, leaf: Leaf, moves: Sequence[Move], sides: list[SignSide]) -> bool:
        """Make all moves of a matrix in one pass, with the bits of one after the other; False where that cannot be.

        How many weights changed is then known of all of them together.
        """
        if leaf.dtype != torch.float32 or any(iterate.rates[leaf.group].lr == 0.0 for iterate, _ in moves):
            return False
        for start, stop in self.store.pieces(leaf, write=True):
            x = leaf.flat[start:stop]
            columns = leaf.matrix_shape[1]
            changed = kernels.add_outer(x, x, leaf.place(start), columns, 1.0, sides, one_by_one=True)
            if changed is None:  # of the first piece, if at all
                return False
            for iterate, _ in moves:
                iterate.changed += changed
                iterate.moved = True
        self._count(moves)
        return True
