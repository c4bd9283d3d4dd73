"""An estimate that is computed block by block of a model, while the weights move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import nn

from zograd.blockwise import NO_ENDS, Backprop, Blockwise, Ends, Nodes, Residual, ResidualByValues, starts
from zograd.core.query import Ask, Estimate, Query, Routine
from zograd.core.vector import Slot, Vector
from zograd.estimators.base import Estimator

if TYPE_CHECKING:
    from zograd.stores import Leaf, Store


@dataclass(frozen=True, slots=True)
class FromBlocks(Estimator[None]):
    """g = the slot "gradient", which the store's source fills for one leaf after the other (`zograd.blockwise`).

    kind: "residual" or "backprop", the source that a run is given. 1 evaluation a step, and what the source costs.
    A rule has to pass over the weights once, as those do that act on elements; another one asks for the same gradient
    twice. A tape does not replay such steps: the numbers are not functions of a seed. An error within a step may leave
    some blocks moved and others not; a run goes on from its saved state.

    TypeError from a run whose store has no source.

    >>> import zograd as zo
    >>> FromBlocks("backprop").evaluations
    1
    """

    kind: Literal["residual", "backprop", "nodes"]

    replays: ClassVar[bool] = False
    entry: ClassVar[str] = ""
    """The name in the menu where it is not the kind."""

    @property
    def evaluations(self) -> int:
        return 1

    @property
    def passes(self) -> int:
        """Forward passes of the trained blocks in a step, where a derivative counts for two."""
        return 4  # the forward; each block again, and its derivative

    @property
    def adds(self) -> bool:
        """Whether the blocks have to add to the states that enter them."""
        return self.kind == "residual"

    @property
    def differentiates(self) -> bool:
        """Whether the loss must have a derivative in the hidden states behind the last block."""
        return True

    @property
    def reaches_front(self) -> bool:
        """Whether it knows the gradient of what stands in front of the blocks: of embeddings."""
        return self.kind == "backprop"

    @property
    def perturbs_lookup(self) -> bool:
        """Whether it estimates the gradient of a trained lookup in front of the blocks (`zograd.blockwise.Lookup`)."""
        return False

    def states(self, blocks: int) -> int:
        """How many hidden states between so many blocks are in memory at a time."""
        return blocks if self.kind == "backprop" else 2

    def source(self, blocks: Sequence[nn.Module], leaves: Sequence[Leaf], ends: Ends = NO_ENDS) -> Blockwise:
        """What computes the gradients of these leaves: parameters of these blocks, and `ends` outside of them.

        ends.front: only where `reaches_front`, or for a lookup where `perturbs_lookup`.
        """
        return Residual(blocks, leaves, ends) if self.kind == "residual" else Backprop(blocks, leaves, ends)

    def prepare(self, store: Store) -> None:
        if store.source is None:
            raise TypeError(needs_blocks(self.entry or self.kind))

    def __call__(self, ask: Ask) -> Routine[None]:
        losses = yield [Query()] * self.evaluations
        return Estimate(Vector(((Slot("gradient"), 1.0),)), sum(losses) / len(losses), list(losses), None)


def needs_blocks(name: str) -> str:
    """What is said of a method of this name where there are no blocks."""
    return (
        f"{name!r} takes gradients from the blocks of a language model, and here is a function of numbers; use zograd "
        f"train, or a method that needs values alone, such as 'zo_sgd'"
    )


@dataclass(frozen=True, slots=True)
class Backpropagation(FromBlocks):
    """Backpropagation block by block: see `zograd.blockwise.Backprop`.

    recompute: of L blocks, about sqrt(2 L) states are kept, and those between are computed again.

    1 evaluation a step, and a forward and a derivative of each block from the first trained one on; with `recompute`
    at most one more forward of each.

    >>> import zograd as zo
    >>> zo.methods.backprop(recompute=True).estimator
    Backpropagation(kind='backprop', recompute=True)
    """

    kind: Literal["residual", "backprop", "nodes"] = "backprop"
    recompute: bool = False

    @property
    def passes(self) -> int:
        return 5 if self.recompute else 4

    def states(self, blocks: int) -> int:
        return min(blocks, len(starts(range(blocks))) + 1) if self.recompute else blocks

    def source(self, blocks: Sequence[nn.Module], leaves: Sequence[Leaf], ends: Ends = NO_ENDS) -> Blockwise:
        return Backprop(blocks, leaves, ends, recompute=self.recompute)


@dataclass(frozen=True, slots=True)
class ResidualFeedback(FromBlocks):
    """Residual feedback: see `zograd.blockwise.Residual`.

    exact: so many last blocks have their exact derivative, and the blocks before them learn from what it is in front of
    these. Memory: what enters each of them.

    1 evaluation a step, and a forward and a derivative of each block from the first trained one on. ValueError for a
    negative number.

    >>> import zograd as zo
    >>> zo.methods.residual(lr=1e-3).estimator
    ResidualFeedback(kind='residual', exact=4)
    """

    kind: Literal["residual", "backprop", "nodes"] = "residual"
    exact: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.exact, int) or self.exact < 0:
            raise ValueError(f"exact is a number of blocks, at least 0, got {self.exact}")

    def states(self, blocks: int) -> int:
        return 2 + min(self.exact, blocks)

    def source(self, blocks: Sequence[nn.Module], leaves: Sequence[Leaf], ends: Ends = NO_ENDS) -> Blockwise:
        return Residual(blocks, leaves, ends, exact=self.exact)


@dataclass(frozen=True, slots=True)
class ForwardResidual(FromBlocks):
    """Residual feedback by values of each block alone: see `zograd.blockwise.ResidualByValues`.

    mu: the radius, as a share of the root mean square of a layer's outputs. draws: pairs of evaluations of a block.

    1 evaluation a step, and 1 + 2 draws of each block from the first trained one on. ValueError for settings that do
    not fit.

    >>> import zograd as zo
    >>> zo.methods.forward_residual(draws=2).estimator
    ForwardResidual(kind='residual', mu=0.01, draws=2)
    """

    entry: ClassVar[str] = "forward_residual"

    kind: Literal["residual", "backprop", "nodes"] = "residual"
    mu: float = 1e-2
    draws: int = 1

    def __post_init__(self) -> None:
        if self.draws < 1 or not self.mu > 0:
            raise ValueError(f"draws must be at least 1 and mu positive, got {self.draws} and {self.mu}")

    @property
    def passes(self) -> int:
        return 2 + 2 * self.draws

    def source(self, blocks: Sequence[nn.Module], leaves: Sequence[Leaf], ends: Ends = NO_ENDS) -> Blockwise:
        return ResidualByValues(blocks, leaves, ends, mu=self.mu, draws=self.draws)


@dataclass(frozen=True, slots=True)
class NodePerturbation(FromBlocks):
    """g = d/dW sum_i <c_i xi_i, y_i>, c_i = (L_i(y + mu xi) - L_i(y - mu xi)) / 2 mu: see `zograd.blockwise.Nodes`.

    mu: the radius on the outputs y, in their units; on virtual tokens a share of the size of their weights. at: the
    outputs of "layers" or of "blocks". draws: pairs.
    center: "residual" adds them, times `shrink`, as a correction to residual feedback.

    2 draws evaluations a step, one more with center. ValueError for settings that do not fit.

    >>> import zograd as zo
    >>> zo.methods.node_perturbation(draws=2).evaluations
    4
    """

    entry: ClassVar[str] = "node_perturbation"

    kind: Literal["residual", "backprop", "nodes"] = "nodes"
    mu: float = 1e-2
    at: Literal["layers", "blocks"] = "layers"
    draws: int = 1
    center: Literal["none", "residual"] = "none"
    shrink: float = 1.0

    def __post_init__(self) -> None:
        if self.at not in ("layers", "blocks") or self.center not in ("none", "residual"):
            raise ValueError(
                f"at is 'layers' or 'blocks' and center is 'none' or 'residual', got {self.at!r} and {self.center!r}"
            )
        if self.center == "residual" and self.at == "layers":
            raise ValueError("center='residual' knows the derivative behind each block alone; pass at='blocks' with it")
        if self.draws < 1 or not self.mu > 0:
            raise ValueError(f"draws must be at least 1 and mu positive, got {self.draws} and {self.mu}")

    @property
    def adds(self) -> bool:
        return self.center == "residual"

    @property
    def differentiates(self) -> bool:
        return self.center == "residual"

    @property
    def perturbs_lookup(self) -> bool:
        return self.center == "none"

    @property
    def evaluations(self) -> int:
        return 2 * self.draws + (self.center == "residual")

    @property
    def passes(self) -> int:
        return self.evaluations + 2  # and a pass with the products of the layers

    def source(self, blocks: Sequence[nn.Module], leaves: Sequence[Leaf], ends: Ends = NO_ENDS) -> Blockwise:
        center = self.center == "residual"
        return Nodes(blocks, leaves, ends, mu=self.mu, at=self.at, draws=self.draws, center=center, shrink=self.shrink)
