"""Halpern's pull to the start, optimistic mirror steps, and estimates that follow the gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zograd import AskTell, Method, Run, Store, methods
from zograd.estimators import SVRG, Central, Coordinates, Page, Recentred, Tracker
from zograd.laws import Gaussian, Orthogonal, Rademacher
from zograd.rules import SGD, Entropy, EuclideanMap, Halpern, OptimisticMirror, Proximal
from zograd.sets import Box, L1Ball, L2Ball, Simplex
from zograd.spaces import PositiveOrthant

D = 5
EXACT = Coordinates(D, central=True)
TARGET = np.array([0.9, -0.4, 0.3, -1.5, 0.2])


SCALE = np.array([1.0, 0.5, 0.1, 0.02, 0.004])


def quadratic(x: np.ndarray) -> float:
    return float(SCALE @ (x - TARGET) ** 2 / 2)


# ---- Halpern ---------------------------------------------------------------------------------------------------------


def test_the_residual_of_the_last_iterate_keeps_the_bound_of_halpern() -> None:
    """|grad f(x_k)| <= 2 L |x_0 - x*| / (k + 1) with exact gradients and lr = 1/L, at every step."""
    loop = AskTell(np.zeros(D), Method(EXACT, Rademacher(), Halpern(), mu=0.1, lr=1.0))
    for k in range(300):
        assert np.linalg.norm(SCALE * (loop.x - TARGET)) <= 2 * np.linalg.norm(TARGET) / (k + 1) + 1e-9
        loop.tell([quadratic(p) for p in loop.ask()])


def test_the_path_of_halpern_is_its_recursion_over_several_leaves() -> None:
    x0 = {"a": np.array([1.0, 2.0]), "b": np.array([3.0])}
    loop = AskTell(x0, Method(Coordinates(3, central=True), Rademacher(), Halpern(2.0, 4.0), mu=0.5, lr=0.3))
    x = start = np.array([1.0, 2.0, 3.0])
    for k in range(20):
        loop.tell([float(np.sum(p["a"] ** 2) + 2 * np.sum(p["b"] ** 2)) for p in loop.ask()])
        b = 2 / (k + 4)
        x = b * start + (1 - b) * (x - 0.3 * np.array([2.0, 2.0, 4.0]) * x)
        assert np.concatenate([loop.x["a"], loop.x["b"]]) == pytest.approx(x, abs=1e-12)


def test_pulls_and_spaces_that_have_no_average_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\), got weight=2.0, offset=2.0; published are"):
        Halpern(2.0, 2.0)
    with pytest.raises(TypeError, match="Halpern averages points, which PositiveOrthant does not allow"):
        Method(Central(1), Rademacher(), Halpern(), PositiveOrthant())


# ---- optimistic mirror descent ---------------------------------------------------------------------------------------


def played(rule: OptimisticMirror, start: np.ndarray, g: np.ndarray) -> np.ndarray:
    loop = AskTell(start, Method(Coordinates(start.size, central=True), Rademacher(), rule, mu=0.25, lr=1.0))
    path = []
    for g_t in g:
        path.append(loop.x.copy())
        loop.tell([float(g_t @ p) for p in loop.ask()])
    return np.array(path)


def test_the_entropic_path_is_its_formula() -> None:
    g = np.random.default_rng(0).standard_normal((40, 4))
    x = y = np.full(4, 0.5)
    hint, wrong, expected = np.zeros(4), 0.0, []
    for g_t in g:
        expected.append(x)
        y = y * np.exp(-0.7 / np.sqrt(2 + wrong) * g_t)
        y = 2 * y / y.sum()
        wrong += np.sum((g_t - hint) ** 2)
        x = y * np.exp(-0.7 / np.sqrt(2 + wrong) * g_t)
        x, hint = 2 * x / x.sum(), g_t
    assert played(OptimisticMirror(Entropy(2.0), 0.7, 2.0), np.full(4, 0.5), g) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("C", [L2Ball(0.5), Simplex(1.0), Box(-0.2, 0.6), L1Ball(1.0)], ids=lambda c: type(c).__name__)
def test_both_points_are_projections_of_the_set(C) -> None:
    """y = P(y - eta g) and x = P(y - eta' g) with the set's own projection."""
    start = np.full(4, 0.25)
    g = np.random.default_rng(1).standard_normal((25, 4))
    path = played(OptimisticMirror(EuclideanMap(C), 2.0), start, g)

    def projected(z: np.ndarray) -> np.ndarray:
        return C.project_(torch.from_numpy(z.copy())).numpy()

    x = y = start
    hint, wrong = np.zeros(4), 0.0
    for k, g_t in enumerate(g):
        assert path[k] == pytest.approx(x, abs=1e-9)
        y = projected(y - 2 / np.sqrt(1 + wrong) * g_t)
        wrong += np.sum((g_t - hint) ** 2)
        x, hint = projected(y - 2 / np.sqrt(1 + wrong) * g_t), g_t


def test_constant_losses_have_bounded_regret() -> None:
    """After the first round every hint is right: the rate stays, and the regret does not grow with the rounds."""
    g = np.tile([0.3, -0.1, 0.5, 0.2], (400, 1))
    path = played(OptimisticMirror(EuclideanMap(L2Ball(1.0)), 2.0), np.zeros(4), g)
    regret = np.cumsum(path @ g[0]) + np.arange(1, 401) * np.linalg.norm(g[0])
    assert regret[-1] == pytest.approx(regret[40], abs=1e-6)


def test_starts_and_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="is not in L2Ball"):
        AskTell(np.ones(4), methods.optimistic_mirror(EuclideanMap(L2Ball(1.0))))
    with pytest.raises(ValueError, match=r"must be > 0 and add up to 1; start at 1 / 4 in each"):
        AskTell(np.array([1.0, 0, 0, 0]), methods.optimistic_mirror(Entropy()))
    with pytest.raises(TypeError, match=r"map is L2Ball.*expected is EuclideanMap\(set\) or Entropy\(total\)"):
        OptimisticMirror(L2Ball(1.0))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Recentred read the slot 'prior', which changes. Use Proximal\(set\)"):
        Method(Recentred(1), Rademacher(), OptimisticMirror(Entropy()))
    with pytest.raises(ValueError, match="total is what the elements of a tensor add up to"):
        Entropy(0.0)
    with pytest.raises(ValueError, match="diameter and floor must be > 0"):
        OptimisticMirror(Entropy(), 0.0)


# ---- estimates that follow the gradient ------------------------------------------------------------------------------


def terms(n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.standard_normal((n, D)), rng.standard_normal(n)


def least_squares(x: np.ndarray, rows: np.ndarray) -> float:
    a, b = terms()
    return float(np.mean((a[rows] @ x - b[rows]) ** 2) / 2)


def sum_run(method: Method, seed: int = 0) -> tuple[Run, torch.Tensor, object]:
    x = torch.zeros(D, dtype=torch.float64)
    a, b = (torch.from_numpy(t) for t in terms())

    def oracle(store: Store, queries, key: int) -> list[float]:
        found = []
        for query in queries:
            rows = list(query.rows) if query.rows is not None else slice(None)
            with store.at(query.at):
                found.append(float(((a[rows] @ (x * 1.0) - b[rows]) ** 2).mean() / 2))
        return found

    return Run(Store({"x": x}), method, seed, terms=len(b)), x, oracle


def test_the_error_of_the_tracker_contracts_at_its_rate() -> None:
    """E|h - g|^2 falls by 1 - n/(n + d + 1) a step for Gaussian directions, x held."""
    n, steps, runs = 2, 15, 400
    g = np.arange(1.0, D + 1)
    errors = np.zeros(steps)
    for seed in range(runs):
        x = torch.zeros(D, dtype=torch.float64)
        run = Run(Store({"x": x}), Method(Tracker(n), Gaussian(), SGD(), mu=0.5, lr=1e-30), seed)
        oracle = lambda store, queries, key: [float(g @ store_point(store, q)) for q in queries]  # noqa: E731
        for k in range(steps):
            run.step(oracle)
            errors[k] += float(np.sum((run.store.leaves[0].slots["tracker"].numpy() - g) ** 2)) / runs
    expected = (g @ g) * (1 - n / (n + D + 1)) ** np.arange(1, steps + 1)
    assert errors == pytest.approx(expected, rel=0.15)


def store_point(store: Store, query) -> np.ndarray:
    return np.concatenate([b.v[0].numpy().copy() for b in store.blocks(query.at)])


def test_page_with_all_directions_holds_the_gradient_of_its_rows() -> None:
    """With d orthogonal directions and a batch of all terms the recursion is the gradient itself, at every step."""
    method = Method(Page(D, 30, 0.05, EXACT), Orthogonal(), SGD(), mu=0.1, lr=0.1)
    run, x, oracle = sum_run(method)
    a, b = terms()
    for _ in range(40):
        here = x.numpy().copy()
        run.step(oracle)
        assert run.store.leaves[0].slots["page"].numpy() == pytest.approx(a.T @ (a @ here - b) / 30, abs=1e-7)


def test_page_converges_on_a_finite_sum_in_fewer_terms_than_all_of_them_a_step() -> None:
    a, b = terms()
    best = np.linalg.lstsq(a, b, rcond=None)[0]
    run, x, oracle = sum_run(Method(Page(D, 5, None, EXACT), Orthogonal(), SGD(), mu=0.1, lr=0.15), seed=1)
    steps = 0
    while np.linalg.norm(x.numpy() - best) > 1e-6:
        run.step(oracle)
        steps += 1
        assert steps < 2000
    assert run.evaluations < 0.7 * steps * EXACT.evaluations * 30


def test_a_tracker_inside_of_page_follows_the_gradient_at_its_refreshes() -> None:
    """p = 1: page and tracker are one number each step, and the tracker's own recursion goes on."""
    run, x, oracle = sum_run(Method(Page(1, 3, 1.0, Tracker(4)), Gaussian(), SGD(), mu=0.1, lr=0.1), seed=2)
    for _ in range(200):
        run.step(oracle)
        slots = run.store.leaves[0].slots
        assert torch.equal(slots["page"], slots["tracker"])
    a, b = terms()
    assert x.numpy() == pytest.approx(np.linalg.lstsq(a, b, rcond=None)[0], abs=1e-2)


def test_pages_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match="Page and its full estimator Page both have the slot 'last'"):
        Method(Page(full=Page()), Rademacher(), SGD())
    with pytest.raises(TypeError, match="returns to an earlier iterate along a straight line"):
        Method(Page(), Rademacher(), SGD(), PositiveOrthant())
    with pytest.raises(ValueError, match=r"p is a probability and must lie in \(0, 1\], got 0"):
        Page(p=0.0)
    assert Method(Page(full=SVRG(1)), Rademacher(), Proximal(L2Ball(1.0))).slots.keys() == {
        "page", "last", "anchor", "anchor_gradient"
    }  # fmt: skip
