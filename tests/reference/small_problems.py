"""What the tests of the core share: one case (at least) for every line of the menu, and small losses to run it on.

A method that is on the menu and not in CASES fails `test_conformance_registry.py`, and every other conformance test
is parametrised over CASES: so a new method is either held to all the laws, or the suite is red.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import papers
import torch
from torch import Tensor, nn

from zograd import methods
from zograd.estimators import Central, Forward, OneSided, Ranked
from zograd.laws import Gaussian, Rademacher, Sphere
from zograd.noise import fold, reference
from zograd.run import DIRECTION, Method, Record, Run
from zograd.sets import L1Ball
from zograd.spaces import Euclidean, PositiveOrthant
from zograd.stores import Store
from zograd.vector import Noise, Query, Slot, Vector

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A menu entry with settings that move a small problem, and the paper's recurrence it must follow."""

    name: str
    paper: Callable[..., Iterator[Array]]
    settings: dict[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def id(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name

    def method(self, **changed: Any) -> Method[Any]:
        return methods.make(self.name, **{**self.settings, **changed})

    @property
    def decays(self) -> bool:
        """Whether the entry has a weight decay to set."""
        return "weight_decay" in methods.describe(self.name)["defaults"]


CASES = [
    Case("zo_sgd", papers.zo_sgd, {"lr": 1e-2, "n": 2}),
    Case("mezo", papers.mezo, {"lr": 1e-2}),
    Case("mezo_momentum", papers.heavy_ball_from_scalars, {"lr": 1e-3, "replay": True}, "replay"),
    Case("mezo_momentum", papers.heavy_ball_from_scalars, {"lr": 1e-3, "replay": True, "window": 3}, "window"),
    Case("mezo_momentum", papers.heavy_ball, {"lr": 1e-3, "replay": False}, "slot"),
    Case("zo_adam", papers.zo_adam, {"lr": 1e-2}),
    Case("zo_sign", papers.zo_sign, {"lr": 1e-2, "n": 3}),
    Case("fzoo", papers.fzoo, {"lr": 1e-2, "n": 4}),
    Case("rank", papers.rank, {"lr": 1e-2, "n": 5}),
    Case("frank_wolfe", papers.frank_wolfe, {"set": L1Ball(4.0), "n": 2}),
]

LAWS = (Rademacher(), Gaussian(), Sphere())
ESTIMATORS = (Central(3), Forward(3), OneSided(4), Ranked(5))
SPACES = (Euclidean(), PositiveOrthant())


def dense(vector: Vector, sizes: Sequence[int], slots: dict[str, Array] | None = None) -> Array:
    """A Vector as numbers, element by element from `zograd.noise.reference` and never through a store."""
    total = np.zeros(sum(sizes))
    for e, c in vector.terms:
        if isinstance(e, Noise):
            leaves = [reference.integers(e.kind, e.key, leaf, np.arange(n)) for leaf, n in enumerate(sizes)]
            total += c * (np.concatenate(leaves) * 2.0**-16)
        else:
            assert isinstance(e, Slot)
            total += c * (slots or {})[e.name]
    return total


def directions(method: Method[Any], n: int, sizes: Sequence[int], seed: int, steps: int) -> Iterator[Array]:
    """The matrix of directions of each step, one a row, from the seed alone."""
    for t in range(steps):
        key = fold(seed, t)
        yield np.stack(
            [dense(method.law(fold(key, DIRECTION, j), sum(sizes), exact_gram(sizes)), sizes) for j in range(n)]
        )


def exact_gram(sizes: Sequence[int]) -> Callable[[Sequence[Vector]], Array]:
    def gram(vectors: Sequence[Vector]) -> Array:
        rows = np.stack([dense(v, sizes) for v in vectors])
        return rows @ rows.T

    return gram


def smooth(x: Array) -> float:
    """A smooth, convex, badly scaled function of any number of variables, neither separable nor quadratic."""
    i = np.arange(x.size)
    x = x.reshape(-1).astype(np.float64)
    return float(
        np.sum(np.log(np.cosh(x - np.sin(i)))) + 0.05 * np.sum((i % 5 + 1) * x**2) + 0.1 * np.sum(x[1:] * x[:-1]) + 0.3
    )


def start(d: int = 20) -> Array:
    return 0.15 * np.cos(1.7 * np.arange(d))


# ---- torch problems --------------------------------------------------------------------------------------------------

DTYPES = {
    "float32": (torch.float32, "stochastic"),
    "float64": (torch.float64, "stochastic"),
    "bfloat16": (torch.bfloat16, "stochastic"),
    "bfloat16-split": (torch.bfloat16, "split"),
    "bfloat16-nearest": (torch.bfloat16, "nearest"),
    "float16": (torch.float16, "stochastic"),
    "float16-split": (torch.float16, "split"),
}


def tensors(dtype: torch.dtype, *shapes: tuple[int, ...], seed: int = 1) -> dict[str, Tensor]:
    """Named tensors of small weights: sum |x_i| < 4 for the default shapes, the radius of the set in CASES."""
    g = torch.Generator().manual_seed(seed)
    shapes = shapes or ((6, 5), (7,), (3, 4))
    return {f"w{i}": (0.05 * torch.randn(s, generator=g, dtype=torch.float64)).to(dtype) for i, s in enumerate(shapes)}


def loss_of(weights: dict[str, Tensor]) -> Callable[[], float]:
    """`smooth` of the tensors end to end, read through torch functions."""
    return lambda: smooth(torch.cat([w.reshape(-1).double() for w in weights.values()]).numpy())


def values_oracle(store: Store, queries: Sequence[Query], key: int) -> list[float]:
    """Evaluates `smooth` on what `Store.point_` gives: no lens, no torch arithmetic."""
    answers = []
    for query in queries:
        parts = []
        for leaf in store.leaves:
            out = torch.empty(leaf.numel, dtype=torch.float64 if leaf.dtype == torch.float64 else torch.float32)
            parts.append(store.point_(out, leaf, query.at).double())
        answers.append(smooth(torch.cat(parts).numpy()))
    return answers


def digest(named: Any) -> str:
    """SHA-256 over the bytes of a module's parameters and buffers, or of a mapping of tensors."""
    if isinstance(named, nn.Module):
        named = {**dict(named.named_parameters()), **dict(named.named_buffers())}
    h = hashlib.sha256()
    for name, t in named.items():
        raw = t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""
        h.update(name.encode() + raw)
    return h.hexdigest()


def records_of(run: Run[Any], oracle: Any, steps: int) -> list[Record]:
    return [run.step(oracle) for _ in range(steps)]
