"""Balanced LoRA factors: a run depends on the product alone; the laws of rules, on a store that has such pairs."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from small_problems import directions

from zograd.core.run import Method, Run
from zograd.estimators import Central, Coordinates
from zograd.laws import Gaussian, Rademacher
from zograd.oracles import sequential
from zograd.rules import SGD, Adam, Balanced, BalancedNorms, Lion, Momentum, ReplayMomentum
from zograd.spaces import PositiveOrthant
from zograd.stores import Leaf, Store

N, M, RANK = 12, 10, 3


def target(seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(k, RANK, generator=g, dtype=torch.float64) for k in (N, M))
    return u @ v.T / RANK**0.5


def factors(c: float = 1.0, dtype: torch.dtype = torch.float64, seed: int = 1) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(RANK, M, generator=g, dtype=torch.float64) / 3
    b = torch.randn(N, RANK, generator=g, dtype=torch.float64) / 3
    return {"q.lora_A.weight": (a / c).to(dtype), "q.lora_B.weight": (b * c).to(dtype)}


def loss_of(leaves: dict[str, torch.Tensor]):
    a, b = leaves.values()
    goal = target().to(a.dtype)
    return lambda: float((b.mul(1.0) @ a.mul(1.0) - goal).square().sum() / goal.square().sum())


def trained(rule, c: float, steps: int, **settings) -> tuple[float, dict[str, torch.Tensor]]:
    leaves = factors(c)
    method = Method(Central(2), Gaussian(), rule, mu=1e-5, **{"lr": 0.02, **settings})
    run = Run(Store(leaves), method, 3)
    loss = loss_of(leaves)
    for _ in range(steps):
        run.step(sequential(loss))
    return loss(), leaves


def imbalance(leaves: dict[str, torch.Tensor]) -> float:
    a, b = (x.double() for x in leaves.values())
    return float((b.T @ b - a @ a.T).norm() / (b.T @ b).norm())


@pytest.mark.slow
def test_a_balanced_run_does_not_depend_on_the_split_and_a_plain_one_does() -> None:
    """(c B, A / c), c = 1, 3, 10: the same loss to 1 %; plain ZO keeps most of its loss at c = 10, at its best lr."""
    balanced = [trained(Balanced(SGD()), c, 600, lr=0.2)[0] for c in (1.0, 3.0, 10.0)]
    assert balanced[0] < 0.01
    np.testing.assert_allclose(balanced, balanced[0], rtol=0.01)
    rates = {1.0: (0.2,), 3.0: (0.1, 0.2, 0.3), 10.0: (0.01, 0.03)}  # beyond them runs diverge, below them lag
    plain = [min(trained(SGD(), c, 600, lr=lr)[0] for lr in rates[c]) for c in rates]
    assert plain[0] < 0.01
    assert plain[1] > 0.03
    assert plain[2] > 0.5


def test_balancing_keeps_the_product_and_balances() -> None:
    for c in (0.01, 1.0, 30.0):
        leaves = factors(c)
        a, b = leaves.values()
        before = b @ a
        Run(Store(leaves), Method(Central(), Gaussian(), Balanced(SGD())), 0)
        torch.testing.assert_close(b @ a, before)
        assert imbalance(leaves) < 1e-10
        again = {name: x.clone() for name, x in leaves.items()}
        Run(Store(leaves), Method(Central(), Gaussian(), Balanced(SGD())), 0)  # twice is once, to the bit
        assert all(torch.equal(leaves[name], again[name]) for name in leaves)


def test_it_follows_the_formulas_for_100_steps() -> None:
    """S = (A A^T)^-1/2 ((A A^T)^1/2 B^T B (A A^T)^1/2)^1/2 (A A^T)^-1/2, P = S^1/2, A <- P A, B <- B P^-1, in NumPy."""

    def power(x: np.ndarray, p: float) -> np.ndarray:
        e, q = np.linalg.eigh(x)
        return q @ np.diag(e**p) @ q.T

    def balanced(A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        aa, bb = A @ A.T, B.T @ B
        S = power(aa, -0.5) @ power(power(aa, 0.5) @ bb @ power(aa, 0.5), 0.5) @ power(aa, -0.5)
        np.testing.assert_allclose(S @ aa @ S, bb, atol=1e-9)
        return power(S, 0.5) @ A, B @ power(S, -0.5)

    leaves, lr, mu = factors(3.0), 0.01, 1e-4
    goal = target().numpy()
    A, B = balanced(*(x.numpy().copy() for x in leaves.values()))
    method = Method(Central(1), Rademacher(), Balanced(SGD()), mu=mu, lr=lr)
    run, loss = Run(Store(leaves), method, 7), loss_of(leaves)

    def f(A: np.ndarray, B: np.ndarray) -> float:
        return float(np.sum((B @ A - goal) ** 2) / np.sum(goal**2))

    for V in directions(method, 1, ((RANK, M), (N, RANK)), 7, 100):
        run.step(sequential(loss))
        v, w = V[0][: RANK * M].reshape(RANK, M), V[0][RANK * M :].reshape(N, RANK)
        slope = (f(A + mu * v, B + mu * w) - f(A - mu * v, B - mu * w)) / (2 * mu)
        A, B = balanced(A - lr * slope * v, B - lr * slope * w)
    np.testing.assert_allclose(leaves["q.lora_A.weight"], A, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(leaves["q.lora_B.weight"], B, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(torch.float64, "stochastic"), (torch.float32, "stochastic"), (torch.bfloat16, "split")],
    ids=str,
)
def test_bits_do_not_depend_on_blocks_or_threads_and_replay_is_equal(dtype, rounding, monkeypatch) -> None:
    method = Method(Central(1), Gaussian(), Balanced(ReplayMomentum()), mu=1e-3, lr=1e-2)

    def walk(chunk: int, threads: int):
        monkeypatch.setattr(Leaf, "block", chunk)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        leaves = {**factors(3.0, dtype), "bias": torch.zeros(5, dtype=dtype)}
        run = Run(Store(leaves, rounding=rounding), method, 2)
        pair = dict(list(leaves.items())[:2])
        loss = loss_of({name: x for name, x in pair.items()})
        records = [run.step(sequential(lambda: loss() + float(leaves["bias"].sum()))) for _ in range(6)]
        torch.set_num_threads(before)
        return run, records

    run, records = walk(1 << 18, 1)
    state = {name: x.clone() for name, x in run.store.state_dict().items()}
    assert imbalance(dict(list((leaf.name, leaf.tensor) for leaf in run.store.leaves)[:2])) < 0.02
    for chunk, threads in ((1, 1), (7, 2), (64, 2)):
        other, _ = walk(chunk, threads)
        assert all(torch.equal(x, state[name]) for name, x in other.store.state_dict().items())
    again = Run(Store({**factors(3.0, dtype), "bias": torch.zeros(5, dtype=dtype)}, rounding=rounding), method, 2)
    again.replay(records)
    assert all(torch.equal(x, state[name]) for name, x in again.store.state_dict().items())
    assert again.state_dict() == run.state_dict()
    saved = pickle.loads(pickle.dumps((run.state_dict(), state, method)))
    third = Run(Store({**factors(1.0, dtype), "bias": torch.ones(5, dtype=dtype)}, rounding=rounding), saved[2], 0)
    third.store.load_state_dict(saved[1])
    third.load_state_dict(saved[0])
    assert third.state_dict() == run.state_dict()


def test_lora_that_starts_at_zero_is_left_alone_for_a_while() -> None:
    """B = 0: the first moves are those of the bare rule; balanced after `warmup`, with the product unchanged."""

    def walk(rule, steps: int) -> dict[str, torch.Tensor]:
        leaves = factors(1.0)
        leaves["q.lora_B.weight"].zero_()
        run = Run(Store(leaves), Method(Central(4), Gaussian(), rule, mu=1e-5, lr=0.02), 3)
        for _ in range(steps):
            run.step(sequential(loss_of(leaves)))
        return leaves

    bare, waiting, due = walk(SGD(), 20), walk(Balanced(SGD(), warmup=20), 20), walk(Balanced(SGD(), warmup=19), 20)
    assert all(torch.equal(bare[name], waiting[name]) for name in bare)
    assert imbalance(bare) > 0.1
    assert imbalance(due) < 1e-6
    product, plain = (b @ a for a, b in (due.values(), bare.values()))
    torch.testing.assert_close(product, plain)


def test_balanced_at_once_a_zero_start_is_slower() -> None:
    """Why there is a warm-up: with warmup = 0 both factors are tiny after the first step, near the saddle at 0."""

    def walk(warmup: int) -> float:
        leaves = factors(1.0)
        leaves["q.lora_B.weight"].zero_()
        run = Run(Store(leaves), Method(Central(4), Gaussian(), Balanced(SGD(), warmup=warmup), mu=1e-5, lr=0.2), 3)
        for _ in range(100):
            run.step(sequential(loss_of(leaves)))
        return loss_of(leaves)()

    assert walk(100) < 0.7 < 0.9 < walk(0)


def test_what_cannot_be_balanced_is_refused() -> None:
    def method(rule, **settings) -> Method:
        return Method(Central(), Gaussian(), rule, **settings)

    for inner in (Momentum(), Adam()):
        with pytest.raises(TypeError, match=f"{type(inner).__name__} keeps .* before they were balanced"):
            method(Balanced(inner))
    with pytest.raises(TypeError, match="which PositiveOrthant restricts"):
        method(Balanced(SGD()), space=PositiveOrthant())
    with pytest.raises(ValueError, match="warmup counts moves"):
        Balanced(SGD(), warmup=-1)
    with pytest.raises(ValueError, match=r"no two leaves differ in 'lora_A' and 'lora_B' only .the first leaf is 'w'"):
        Run(Store({"w": torch.ones(3, 2)}), method(Balanced(SGD())), 0)
    with pytest.raises(ValueError, match=r"no factors \(r, m\) and \(n, r\)"):
        Run(Store({"a": torch.ones(3, 2), "b": torch.ones(3, 2)}), method(Balanced(SGD(), factors=("a", "b"))), 0)
    with pytest.raises(ValueError, match="rounding='split'"):
        Run(Store(factors(dtype=torch.bfloat16)), method(Balanced(SGD())), 0)


def test_what_the_inner_rule_says_of_itself_passes_through() -> None:
    rule = Balanced(SGD())
    assert rule.momentum == 0.0
    assert rule.units(None) == 1.0
    assert Method(Central(), Gaussian(), rule, lr="auto").lr is not None


# ---- the preconditioner of RefLoRA, and its scalar form --------------------------------------------------------------


def power(x: np.ndarray, p: float) -> np.ndarray:
    e, q = np.linalg.eigh(x)
    return q @ np.diag(e**p) @ q.T


def test_descent_on_balanced_factors_is_the_preconditioned_recurrence(monkeypatch) -> None:
    """B <- B - lr G A^T S, A <- A - lr S^-1 B^T G (RefLoRA, Algorithm 1) has the same product B A, for 50 steps.

    The loss is of degree two in each element, so differences along all coordinates are its gradient.
    """
    monkeypatch.setattr("zograd.rules.balanced.BALANCED", 0.0)  # pairs within 1e-6 of balance are left alone otherwise
    leaves, lr = factors(3.0), 2.0
    method = Method(Coordinates(RANK * (M + N), central=True), Rademacher(), Balanced(SGD()), mu=0.5, lr=lr)
    A, B = (x.numpy().copy() for x in leaves.values())
    goal = target().numpy()
    run = Run(Store(leaves), method, 7)
    for _ in range(50):
        run.step(sequential(loss_of(leaves)))
        G = 2 * (B @ A - goal) / np.sum(goal**2)
        aa, bb = A @ A.T, B.T @ B
        S = power(aa, -0.5) @ power(power(aa, 0.5) @ bb @ power(aa, 0.5), 0.5) @ power(aa, -0.5)
        A, B = A - lr * np.linalg.inv(S) @ B.T @ G, B - lr * G @ A.T @ S
        a, b = (x.numpy() for x in leaves.values())
        np.testing.assert_allclose(b @ a, B @ A, rtol=0, atol=1e-10)
    assert np.linalg.norm(B @ A - goal) < 0.9 * np.linalg.norm(goal), "it descends"
    assert np.abs(A - leaves["q.lora_A.weight"].numpy()).max() > 0.1, "the factors themselves differ"


@pytest.mark.parametrize("rule", [Momentum(0.8), Adam(0.8, 0.9, eps=0.0)], ids=["momentum", "adam"])
def test_balanced_norms_carry_the_moments_along(rule) -> None:
    """The recurrences in NumPy, with the moments of A over c and c^2, those of B times c and c^2, for 60 steps."""
    leaves, lr, mu = factors(3.0), 0.01, 1e-4
    goal = target().numpy()

    def f(A: np.ndarray, B: np.ndarray) -> float:
        return float(np.sum((B @ A - goal) ** 2) / np.sum(goal**2))

    x = [x.numpy().copy() for x in leaves.values()]
    first, second = [0 * y for y in x], [0 * y for y in x]

    def balance() -> None:
        c = np.sqrt(np.linalg.norm(x[1]) / np.linalg.norm(x[0]))
        for k, by in enumerate((c, 1 / c)):
            x[k], first[k], second[k] = by * x[k], first[k] / by, second[k] / by**2

    balance()
    method = Method(Central(2), Gaussian(), BalancedNorms(rule), mu=mu, lr=lr)
    run = Run(Store(leaves), method, 7)
    for t, V in enumerate(directions(method, 2, ((RANK, M), (N, RANK)), 7, 60), 1):
        run.step(sequential(loss_of(leaves)))
        pairs = [(v[: RANK * M].reshape(RANK, M), v[RANK * M :].reshape(N, RANK)) for v in V]
        A, B = x
        slopes = [(f(A + mu * v, B + mu * w) - f(A - mu * v, B - mu * w)) / (2 * mu) for v, w in pairs]
        for k in (0, 1):
            g = sum(s * p[k] for s, p in zip(slopes, pairs, strict=True)) / 2
            if isinstance(rule, Adam):
                first[k], second[k] = 0.8 * first[k] + 0.2 * g, 0.9 * second[k] + 0.1 * g**2
                x[k] = x[k] - lr * first[k] / (1 - 0.8**t) / np.sqrt(second[k] / (1 - 0.9**t))
            else:
                first[k] = 0.8 * first[k] + g
                x[k] = x[k] - lr * first[k]
        balance()
    np.testing.assert_allclose(leaves["q.lora_A.weight"], x[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(leaves["q.lora_B.weight"], x[1], rtol=1e-5, atol=1e-7)


def test_runs_with_balanced_norms_do_not_depend_on_the_split() -> None:
    """(c B, A / c), c = 1, 10: the same factors to rounding after 100 steps of Adam; without it they part."""

    def product(rule, c: float) -> torch.Tensor:
        a, b = trained(rule, c, 100, lr=0.01)[1].values()
        return b @ a

    torch.testing.assert_close(
        product(BalancedNorms(Adam()), 10.0), product(BalancedNorms(Adam()), 1.0), rtol=1e-6, atol=1e-8
    )
    assert (product(Adam(), 10.0) - product(Adam(), 1.0)).abs().max() > 0.1


def test_balanced_norms_replay_and_leave_a_zero_start_alone() -> None:
    method = Method(Central(2), Gaussian(), BalancedNorms(Lion(), warmup=5), mu=1e-4, lr=1e-3)
    leaves = factors(3.0, torch.float32)
    leaves["q.lora_B.weight"].zero_()
    run = Run(Store(leaves), method, 2)
    records = [run.step(sequential(loss_of(leaves))) for _ in range(5)]
    assert float(leaves["q.lora_A.weight"].norm()) > 10 * float(leaves["q.lora_B.weight"].norm())
    records.append(run.step(sequential(loss_of(leaves))))
    a, b = (float(x.double().norm()) for x in leaves.values())
    assert a == pytest.approx(b, rel=1e-5)
    again = factors(3.0, torch.float32)
    again["q.lora_B.weight"].zero_()
    other = Run(Store(again), method, 2)
    other.replay(records)
    assert all(torch.equal(again[name], x) for name, x in leaves.items())


def test_moments_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="keeps 'exp_avg' for each weight, which BalancedNorms does not know"):
        Method(Central(), Gaussian(), BalancedNorms(Adam(moments="bfloat16")))
    with pytest.raises(ValueError, match=r"BalancedNorms\(rule, factors="):
        Run(Store({"w": torch.ones(3, 2)}), Method(Central(), Gaussian(), BalancedNorms(SGD())), 0)
