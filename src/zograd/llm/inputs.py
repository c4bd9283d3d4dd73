"""What enters the layers of a model: its leading directions, found by forwards alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from zograd.core.query import Query
from zograd.laws.inputs import INPUTS, token_rows
from zograd.oracles import Oracle
from zograd.stores import Leaf, Store

Name = TypeVar("Name", bound=Hashable)
Filled = Callable[[], "Tensor | None"]
"""bool [rows, width]: which positions of the forward under way hold tokens; None: all of them."""

MORE = 8
"""Directions that a sketch keeps beyond those that are wanted, so that these converge."""
ITERATIONS = 3
SMALLEST = 1e-6
"""Singular values below this share of the largest are rounding."""


def leading(x: Tensor, k: int) -> Tensor:
    """float32 [min(k, n, d), d]: sigma_i v_i for the k largest singular values of x [n, d] and their right vectors.

    Subspace iteration from a fixed start, Q <- qr(x^T x Q), then the SVD of x Q (Halko, Martinsson and Tropp 2011,
    Algorithm 4.4). Cost: 2 (2 ITERATIONS + 1) n d k operations, and no n x n or d x d matrix.
    """
    x = x.float()
    k = min(k, *x.shape)
    q = torch.randn(x.shape[1], k, generator=torch.Generator().manual_seed(0)).to(x.device)
    for _ in range(ITERATIONS):
        q = torch.linalg.qr(x.T @ (x @ q)).Q
    _, sigma, vt = torch.linalg.svd(x @ q, full_matrices=False)
    found: Tensor = sigma[:, None] * (vt @ q.T)
    return found


def directions(sketch: Tensor, rank: int) -> Tensor:
    """float32 [at most rank, d]: the orthonormal rows of a sketch (`leading`), without those that are rounding."""
    rows = sketch[:rank]
    sigma: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return (rows / sigma[:, None])[sigma > SMALLEST * sigma.max()] if len(rows) else rows


@contextmanager
def watched(modules: Mapping[Name, nn.Module], k: int, filled: Filled = lambda: None) -> Iterator[dict[Name, Tensor]]:
    """Inside, forwards fill the dict: name -> `leading(x, k)` of all rows x that have entered that module so far.

    Of several forwards, the sketches are merged by their own SVD. Positions without a token, and rows that are not
    finite, are left out. Memory: k vectors a module, and one module's input in float32 at a time.
    """
    found: dict[Name, Tensor] = {}

    def hook(name: Name) -> Callable[..., None]:
        @torch.no_grad()
        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = token_rows(args[0].detach(), filled()).float()
            x = x[torch.isfinite(x).all(1)]
            if len(x):
                found[name] = leading(torch.cat([found[name], x]) if name in found else x, k)

        return enter

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(hook(name)).remove)
        yield found


class InputsOfLeaves:
    """Fills the slot "inputs" of the leaves that are weights of linear layers: a `zograd.stores.InputSource`.

    A weight that several modules read (an embedding that is also the head) is left out. Raises ValueError where no leaf
    is left.
    """

    def __init__(self, model: nn.Module, leaves: Sequence[Leaf], rank: int) -> None:
        owners: dict[int, list[nn.Module]] = {}
        for module in model.modules():
            for p in module.parameters(recurse=False):
                owners.setdefault(id(p), []).append(module)
        self.leaves = {leaf.index: leaf for leaf in leaves}
        self.modules = {
            leaf.index: module
            for leaf in leaves
            if len(found := owners.get(id(leaf.tensor), [])) == 1
            and isinstance(module := found[0], nn.Linear)
            and module.weight is leaf.tensor
        }
        self.rank = rank
        self.filled: Filled = lambda: None
        if not self.modules:
            raise ValueError(
                f"none of the {len(leaves)} trained tensors, {leaves[0].name} among them, is the weight of a linear "
                f"layer (torch.nn.Linear)"
            )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, forwards are recorded; at the end the slots are filled, unless something was raised."""
        with watched(self.modules, self.rank + MORE, lambda: self.filled()) as found:
            yield
        for index, sketch in found.items():
            rows, slot = directions(sketch, self.rank), self.leaves[index].slots[INPUTS]
            slot.zero_()[: len(rows)] = rows


def watching(oracle: Oracle) -> Oracle:
    """The oracle that also records the inputs of layers in the evaluations that ask for it (`Query.inputs`)."""

    def watched_oracle(store: Store, queries: Sequence[Query], key: int) -> list[float]:
        first = [q for q in queries if q.inputs]
        if not first or store.inputs is None:
            return list(oracle(store, queries, key))
        with store.inputs.watching():
            found = list(oracle(store, first, key))
        rest = [q for q in queries if not q.inputs]
        others = list(oracle(store, rest, key)) if rest else []
        return [(found if q.inputs else others).pop(0) for q in queries]

    return watched_oracle
