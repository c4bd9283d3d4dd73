"""Do weights come back after queries, and do updates arrive? zograd beside the baseline loop, for each weight dtype.

Two experiments on a small module (two linear maps with weights ~ N(0, 0.02^2), a LayerNorm with gain 1 in between):

1. Queries. After many evaluations at x + mu v and x - mu v the weights must have the bits they had. The baseline loop
   adds, subtracts and adds again in the dtype of the weights; what it leaves is its drift.
2. Updates. Known steps of u = lr |g| a weight, as fine-tuning makes them, are applied and compared with their sum in
   float64. The spacing of bfloat16 at a weight of 0.02 is 2^-13: 122 times a step of 1e-6.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from zograd.bench.arguments import AnyDtype
from zograd.bench.baseline import cycle_, update_
from zograd.bench.workload import quiet_machine
from zograd.core.vector import Address, Noise, Vector, combination, fill_
from zograd.errors import UsageError
from zograd.llm.loading import dtype_named
from zograd.noise import Kind, backend, fold
from zograd.stores import Rate, Rounding, Store

MU = 2.0**-10
STD = 0.02
BASELINE_MU = 1e-3
BASELINE_ELEMENTS = 1 << 17
"""Elements the drift is measured on: torch's normals are slow, and a root mean square over 1e5 is good to 0.3 %."""

DTYPES = ("float32", "bfloat16", "float16")


class Net(nn.Module):
    """x -> W2 norm(tanh(W1 x)) with W ~ N(0, STD^2), about n elements."""

    def __init__(self, n: int, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        d = math.isqrt(max(n, 2) // 2)
        self.first = nn.Linear(d, d, bias=False)
        self.norm = nn.LayerNorm(d)
        self.second = nn.Linear(d, d, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for w in self.matrices():
            nn.init.normal_(w, std=STD, generator=generator)
        self.x = torch.randn(4, d, generator=generator).to(dtype)
        self.requires_grad_(False).to(dtype)

    def matrices(self) -> list[Tensor]:
        return [self.first.weight, self.second.weight]

    def forward(self) -> Tensor:
        y: Tensor = self.second(self.norm(torch.tanh(self.first(self.x))))
        return y.float().square().mean()


def bench_exact(
    *,
    dtype: AnyDtype = None,
    queries: Annotated[int, "Queries after which the weights are compared."] = 1000,
    updates: Annotated[int, "Updates whose sum is compared with the intended one."] = 100,
    n: int = 1 << 20,
    lr: float = 1e-6,
    sizes: Sequence[float] = (1e-6, 1e-5),
    threads: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Are weights unchanged by queries, and do small updates arrive? For each rounding.

    Exactness of queries and of small updates, for float32, bfloat16 and float16, or for the one `dtype` asked for.

    sizes: root mean square of the u = lr |g| of the updates, whose slopes g are normal. The published lr 1e-7 to 1e-6
        with slopes of 1 to 10 give 1e-7 to 1e-5. The top-level keys are of sizes[0].

    Keys, of the dtype asked for, else of bfloat16: `restored` (bit-identical after `queries` evaluations, each of which
    felt its probe), `baseline_drift` (relative root mean square change after as many cycles +1, -2, +1 of the baseline
    loop at lr = 0), `cosine_split`, `cosine_stochastic`, `baseline_cosine` (between what arrived and what was
    intended), `gain_split`, `gain_stochastic`, `baseline_gain` (the part of the intended move that arrived, <arrived,
    intended> / |intended|^2: 1 when unbiased), `stochastic_bias_z` (the mean error along the sign of the intended move,
    in standard errors: unbiased when within 3; None in float32, which rounds to nearest). A cosine below 1 at gain 1 is
    noise of the rounding, which averages out over elements and steps; what a gain lacks to 1 is lost.
    `table`: these of each dtype, with `by_size` for every u.

    Cost: about a minute on one core for all dtypes, linear in (queries + updates) n. Raises ValueError for settings
    that measure nothing.

    Example: zograd bench exact --dtype bfloat16
    """
    if queries < 1 or updates < 2 or n < 128 or not sizes or min(sizes) <= 0 or lr <= 0:
        raise UsageError(
            f"nothing to measure with queries={queries}, updates={updates}, n={n}, lr={lr}, sizes={tuple(sizes)}; "
            f"use queries >= 1, updates >= 2, n >= 128, positive lr and sizes"
        )
    names = DTYPES if dtype is None else (str(dtype_named(dtype)).removeprefix("torch."),)
    total = len(names) * (2 * queries + 3 * updates * len(sizes))
    table = []
    with (
        quiet_machine(threads),
        torch.no_grad(),
        tqdm(total=total, unit="move", file=sys.stderr, disable=None, leave=False) as bar,
    ):
        for name in names:
            kind = dtype_named(name)
            row: dict[str, Any] = {
                "dtype": name,
                "restored": restored(kind, n, queries, seed, bar.update),
                "baseline_drift": baseline_drift(kind, min(n, BASELINE_ELEMENTS), queries, seed, bar.update),
            }
            by_size = [{"size": u, **arrived(kind, n, updates, lr, u, seed, bar.update)} for u in sizes]
            table.append({**row, **by_size[0], "by_size": by_size})
        used = torch.get_num_threads()
    chosen = next(row for row in table if dtype is not None or row["dtype"] == "bfloat16")
    return {
        **{k: v for k, v in chosen.items() if k != "by_size"},
        "queries": queries,
        "updates": updates,
        "elements": n,
        "lr": lr,
        "backend": backend(),
        "threads": used,
        "torch": torch.__version__,
        "table": table,
    }


def restored(dtype: torch.dtype, n: int, queries: int, seed: int, tick: Callable[[], object]) -> bool:
    """Whether every bit of the module is as before after `queries` forward passes at x +- MU v.

    Also False when a probe left the loss as it was: then nothing would have been tested.
    """
    net = Net(n, dtype, seed)
    store = Store(dict(net.named_parameters()))
    before, unperturbed = store.digest(), float(net())
    felt = True
    for q in range(queries):
        v = Vector(((Noise(Kind.SIGN, fold(seed, q // 2)), 1.0),))
        with store.at((MU if q % 2 == 0 else -MU) * v):
            felt = float(net()) != unperturbed and felt
        felt = store.settled() and felt
        tick()
    return felt and store.digest() == before


def baseline_drift(dtype: torch.dtype, n: int, cycles: int, seed: int, tick: Callable[[], object]) -> float:
    """|W_after - W_before| / |W_before| of the matrices after idle cycles of the baseline loop (radius 1e-3)."""
    net = Net(n, dtype, seed)
    matrices = net.matrices()
    before = flat(matrices)
    for q in range(cycles):
        cycle_(matrices, BASELINE_MU, fold(seed, q) % 2**63)
        tick()
    return float((flat(matrices) - before).norm() / before.norm())


def arrived(
    dtype: torch.dtype, n: int, updates: int, lr: float, size: float, seed: int, tick: Callable[[], object]
) -> dict[str, float | None]:
    """Cosine, gain and bias of `updates` moves of `size` (root mean square) a weight, against their exact sum."""
    slopes = (np.random.Generator(np.random.Philox(seed)).standard_normal(updates) * size / lr).tolist()
    split, intended = zograd_moves(dtype, n, "split", slopes, lr, seed, tick)
    stochastic, _ = zograd_moves(dtype, n, "stochastic", slopes, lr, seed, tick)
    plain, intended_plain = baseline_moves(dtype, n, slopes, lr, seed, tick)
    error = (stochastic - intended) * intended.sign()
    spread = float(error.std()) / math.sqrt(error.numel())
    return {
        "cosine_split": cosine(split, intended),
        "cosine_stochastic": cosine(stochastic, intended),
        "baseline_cosine": cosine(plain, intended_plain),
        "gain_split": gain(split, intended),
        "gain_stochastic": gain(stochastic, intended),
        "baseline_gain": gain(plain, intended_plain),
        "stochastic_bias_z": None if dtype == torch.float32 else float(error.mean()) / spread,
    }


def zograd_moves(
    dtype: torch.dtype,
    n: int,
    rounding: Rounding,
    slopes: Sequence[float],
    lr: float,
    seed: int,
    tick: Callable[[], object],
) -> tuple[Tensor, Tensor]:
    """(the move of the matrices, the move intended), float64, when step t moves by -lr slopes[t] v_t."""
    net = Net(n, dtype, seed)
    store = Store(dict(net.named_parameters()), rounding=rounding)
    leaves = [leaf for leaf in store.leaves if leaf.tensor.ndim == 2]
    before = torch.cat([store.master(leaf).double() for leaf in leaves])
    gradients = [Vector(((Noise(Kind.SIGN, fold(seed, 1, t)), g),)) for t, g in enumerate(slopes)]
    for t, gradient in enumerate(gradients):
        store.iterate((Rate(lr),), key=fold(seed, 2, t)).step_(gradient)
        tick()
    after = torch.cat([store.master(leaf).double() for leaf in leaves])
    total = combination([-lr] * len(gradients), gradients)
    exact = [fill_(torch.empty(leaf.numel, dtype=torch.float64), total, Address(leaf.index, 0), {}) for leaf in leaves]
    return after - before, torch.cat(exact)


def baseline_moves(
    dtype: torch.dtype, n: int, slopes: Sequence[float], lr: float, seed: int, tick: Callable[[], object]
) -> tuple[Tensor, Tensor]:
    """The same of the baseline loop's update pass alone, without the drift of its queries."""
    net = Net(n, dtype, seed)
    matrices = net.matrices()
    before = flat(matrices)
    intended = torch.zeros_like(before)
    for t, slope in enumerate(slopes):
        key = fold(seed, 3, t) % 2**63
        torch.manual_seed(key)
        z = [torch.normal(mean=0.0, std=1.0, size=p.shape, dtype=p.dtype) for p in matrices]
        intended -= lr * slope * flat(z)
        update_(matrices, lr, slope, key)
        tick()
    return flat(matrices) - before, intended


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """One float64 vector (a copy)."""
    return torch.cat([t.detach().double().view(-1) for t in tensors])


def cosine(a: Tensor, b: Tensor) -> float:
    """<a, b> / |a| |b|, and 0 when nothing moved."""
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale else 0.0


def gain(arrived: Tensor, intended: Tensor) -> float:
    """<arrived, intended> / |intended|^2."""
    return float(arrived @ intended) / float(intended @ intended)
