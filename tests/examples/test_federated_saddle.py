"""Row 38: SVOGS from values against its recursion on exact matrices, and against the duality gap."""

from __future__ import annotations

import numpy as np
import pytest

from zograd.examples import federated_saddle as example

N, SEED = 8, 3


def exact(many) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    fields = [client.exact() for client in many]
    return np.stack([m for m, _ in fields]), np.stack([q for _, q in fields]), np.eye(example.X + example.R)


def reference(M: np.ndarray, q: np.ndarray, rounds: int, delta: float) -> list[np.ndarray]:
    """The recursion of SVOGS with one client a round, from matrices, with the coins of the example."""
    n, d = q.shape
    F = lambda i, z: M[i] @ z + q[i]  # noqa: E731
    rng, eta, p = np.random.default_rng(SEED), 0.3 / delta, 1 / n
    z = last = w = np.zeros(d)
    path = []
    for _ in range(rounds):
        i = int(rng.integers(n))
        D = lambda k, u: F(k, u) - F(0, u)  # noqa: E731
        e = np.mean([D(k, w) for k in range(n)], axis=0)
        e = e + D(i, z) - D(i, w) + (1 - p) * (D(i, z) - D(i, last))
        new = np.linalg.solve(M[0] + np.eye(d) / eta, ((1 - p) * z + p * w) / eta - q[0] - e)
        last, z = z, new
        if rng.random() < p:
            w = last
        path.append(z)
    return path


def test_rounds_from_values_are_the_recursion_on_matrices() -> None:
    many = example.clients(N, 1)
    M, q, _ = exact(many)
    delta, solution = 0.8, np.linalg.solve(M.mean(0), -q.mean(0))
    calls, gaps = example.svogs(many, delta, solution, 40, SEED)
    expected = [float(np.linalg.norm(z - solution)) for z in reference(M, q, 40, delta)]
    assert gaps == pytest.approx(expected[: len(gaps)], rel=1e-5)
    assert calls[-1] == sum(client.calls for client in many) >= N + 2 * len(gaps)


def test_the_solution_of_the_linear_system_has_no_duality_gap() -> None:
    """gap(x, r) = max_r f(x, .) - min_x f(., r) by the closed form of quadratics; it is 0 at the solution only."""
    many = example.clients(N, 2)
    M, q, _ = exact(many)
    solution = np.linalg.solve(M.mean(0), -q.mean(0))
    sign = np.r_[np.ones(example.X), -np.ones(example.R)]
    h, b = sign[:, None] * M.mean(0), sign * q.mean(0)
    x, r = slice(0, example.X), slice(example.X, None)
    assert np.linalg.eigvalsh(h[x, x]).min() > 0 > np.linalg.eigvalsh(h[r, r]).max()

    def f(z: np.ndarray) -> float:
        return float(np.mean([client.value(z) for client in many]))

    def gap(z: np.ndarray) -> float:
        worst, best = z.copy(), z.copy()
        worst[r] = np.linalg.solve(h[r, r], -b[r] - h[r, x] @ z[x])
        best[x] = np.linalg.solve(h[x, x], -b[x] - h[x, r] @ z[r])
        return f(worst) - f(best)

    assert gap(solution) == pytest.approx(0, abs=1e-10)
    assert gap(solution + 0.1) > 1e-3
    assert gap(solution - 0.1 * sign) > 1e-3


def test_extragradient_is_its_two_steps() -> None:
    M, q = np.array([[0.2, 1.0], [-1.0, 0.2]]), np.array([1.0, -1.0])
    solution = np.linalg.solve(M, -q)
    calls, gaps = example.extragradient(M, q, 3, solution, 60_000)
    assert gaps[-1] <= 1e-6
    assert calls[-1] == 6 * len(gaps)
    assert len(gaps) < 200
