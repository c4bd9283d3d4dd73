"""Matrices as products of thin factors, by a singular value decomposition whose rows have weights (FWSVD)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zograd.compress.scores import floor_of
from zograd.core import keys
from zograd.core.query import Query
from zograd.core.vector import Vector
from zograd.files import write_tensors
from zograd.laws.rows import RowSigns
from zograd.noise import fold
from zograd.oracles import Oracle
from zograd.sets.base import one_thread
from zograd.stores import Store

LEAST = 1e-6
"""Weights of rows below this share of the largest one count as this share: the product divides by them."""


def row_fisher(store: Store, oracles: Sequence[Oracle], mu: float = 2.0**-10, seed: int = 0) -> dict[str, Tensor]:
    """float64 [rows] by leaf: d_i = sqrt(sum_j E g_ij^2), the mean over `oracles` (one a batch), from evaluations.

    For each row and batch, the slope along random signs s on that row alone: E (sum_j g_ij s_j)^2 = sum_j g_ij^2. So
    d_i^2 is unbiased up to mu^2, with a relative error of about sqrt(2 / batches). Signs on all rows at once would need
    as many directions as there are rows for the same error, since each slope then holds the noise of all others. Rows
    are those of the leaf, first axis by the rest.

    Cost: 2 evaluations a row and batch. Memory: a number a row.
    """
    own = keys.seed_of(seed, keys.Part.SENSITIVITY)
    squares = {leaf.name: torch.zeros(leaf.matrix_shape[0], dtype=torch.float64) for leaf in store.leaves}
    for k, oracle in enumerate(oracles):
        for leaf in store.leaves:
            for row in range(leaf.matrix_shape[0]):
                v = Vector(((RowSigns(fold(own, k), leaf.index, row), mu),))
                up, down = oracle(store, [Query(v), Query(-v)], k)
                squares[leaf.name][row] += ((up - down) / (2.0 * mu)) ** 2 / len(oracles)
    return {name: square.sqrt() for name, square in squares.items()}


def row_fisher_by_autograd(
    layers: Mapping[str, nn.Linear], losses: Iterable[Callable[[], Tensor]]
) -> dict[str, Tensor]:
    """float64 [outputs] by layer: d_i = sqrt(sum_j E g_ij^2), the mean over `losses` (one a batch), by autograd.

    losses: each returns a scalar with a graph. Cost: a backward pass a batch, with its memory.
    """
    weights = [layer.weight for layer in layers.values()]
    before = [w.requires_grad for w in weights]
    squares = [torch.zeros(len(w), dtype=torch.float64) for w in weights]
    count = 0
    try:
        for w in weights:
            w.requires_grad_(True)
        with torch.enable_grad():
            for count, loss in enumerate(losses, 1):  # noqa: B007
                for square, g in zip(squares, torch.autograd.grad(loss(), weights), strict=True):
                    square += g.double().square().sum(1).cpu()
    finally:
        for w, needed in zip(weights, before, strict=True):
            w.requires_grad_(needed)
    if not count:
        raise ValueError("there are no losses; pass one a batch")
    return {name: (square / count).sqrt() for name, square in zip(layers, squares, strict=True)}


def weighted_svd(w: Tensor, rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [m, r], B [r, n] in float64 with least sum_i rows_i^2 |(W - A B)_i|^2 over all products of rank r.

    U S V^T = SVD(diag(rows) W), A = diag(1 / rows) U_r S_r, B = V_r^T (Hsu et al. 2022, FWSVD). rows of ones: the SVD.
    Weights below 1e-6 of the largest count as that. ValueError for weights that are negative, not finite, or all 0 (no
    batch had a gradient), and for a rank above the sides.

    >>> a, b = weighted_svd(torch.tensor([[1.0, 2.0], [2.0, 4.0]]), torch.ones(2), rank=1)
    >>> [[round(x, 6) for x in row] for row in (a @ b).tolist()]
    [[1.0, 2.0], [2.0, 4.0]]
    """
    if not 1 <= rank <= min(w.shape):
        raise ValueError(f"rank {rank} for a matrix of {tuple(w.shape)}; it lies between 1 and {min(w.shape)}")
    if rows.shape != w.shape[:1] or not bool(rows.isfinite().all()) or bool((rows < 0).any()) or not rows.max() > 0:
        raise ValueError(
            f"{len(rows)} weights for the {len(w)} rows; pass one a row, finite and not negative, and not all 0"
        )
    d = rows.to(w.device, torch.float64)
    d = d.clamp(min=LEAST * float(d.max()))[:, None]
    with one_thread():
        u, s, vt = torch.linalg.svd(d * w.detach().double(), full_matrices=False)
        return u[:, :rank] * s[:rank] / d, vt[:rank].contiguous()


def rank_of(shape: Sequence[int], keep: float) -> int:
    """The largest rank whose factors have at most `keep` of the numbers of an m x n matrix, at least 1.

    >>> rank_of((576, 1536), 0.6)
    251
    """
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep is the share of numbers that stay, in (0, 1], got {keep}")
    m, n = shape
    return max(1, min(floor_of(keep, m * n / (m + n)), m, n))


class Factored(nn.Module):
    """x -> A (B x) + bias, in place of a linear layer; first [r, inputs] and second [outputs, r] are its parameters."""

    def __init__(self, first: Tensor, second: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)
        self.bias = bias if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.first), self.second, self.bias)

    def dense(self) -> Tensor:
        """A B, in the dtype of the factors."""
        return (self.second.double() @ self.first.double()).to(self.first.dtype)


def factorise_(
    model: nn.Module, layers: Mapping[str, nn.Linear], keep: float, rows: Mapping[str, Tensor] | None = None
) -> dict[str, Factored]:
    """Replace each layer of the model by its best factors with `keep` of its numbers, in place; the new modules.

    rows: weights of the rows (`row_fisher`); None: all equal, the plain SVD. ValueError, before anything changes, for
    rows that do not fit (`weighted_svd`) and for a `keep` outside (0, 1].
    """
    made = {}
    for name, layer in layers.items():
        w = layer.weight.detach()
        if rows is not None and name not in rows:
            raise ValueError(f"there are no weights of rows for {name}; there are some for {', '.join(list(rows)[:3])}")
        d = torch.ones(len(w), dtype=torch.float64) if rows is None else rows[name]
        a, b = weighted_svd(w, d, rank_of(w.shape, keep))
        bias = None if layer.bias is None else layer.bias.detach().clone()
        made[name] = Factored(b.to(w.dtype), a.to(w.dtype), bias).requires_grad_(w.requires_grad)
    for name, module in made.items():
        replace_(model, name, module)
    return made


def replace_(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of that name."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def save_factors(factored: Mapping[str, Factored], path: str | os.PathLike[str]) -> None:
    """To a safetensors file: NAME.first and NAME.second of each layer."""
    tensors = {f"{n}.{k}": getattr(m, k).detach().contiguous() for n, m in factored.items() for k in SIDES}
    write_tensors(Path(path), tensors)


SIDES = ("first", "second")


def load_factors(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Put the factors of `save_factors` in the places of the linear layers of that name, in place.

    ValueError, before anything changes, where the model has no such layer or its shape is another one.
    """
    tensors = load_file(path)
    names = sorted({name.rpartition(".")[0] for name in tensors})
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name in names:
        shape = (len(tensors[f"{name}.second"]), tensors[f"{name}.first"].shape[1])
        if name not in linear or linear[name].weight.shape != shape:
            raise ValueError(f"{path} has factors of {name}, {shape[0]} x {shape[1]}, and the model no such layer")
    for name in names:
        first, second = (tensors[f"{name}.{side}"] for side in SIDES)
        replace_(model, name, Factored(first, second, linear[name].bias))
    return model
