"""Three-point estimates, Richardson's extrapolation, clipped slopes."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_problems import smooth, start

from zograd import AskTell, methods
from zograd.core.query import Ask, Estimate
from zograd.core.run import Method, Run
from zograd.core.vector import Vector
from zograd.estimators import Central, Curvatures, Curved, ProbeWeighted, Richardson
from zograd.laws import Rademacher
from zograd.rules import SGD
from zograd.stores import Store

D = 4
SIGNS = np.array(list(itertools.product((1.0, -1.0), repeat=D)))
A = np.array([[2.0, 0.3, -0.1, 0.4], [0.3, 1.0, 0.2, 0.0], [-0.1, 0.2, 3.0, 0.5], [0.4, 0.0, 0.5, 0.7]])
B = np.array([1.0, -2.0, 0.5, 0.25])
X = np.array([0.3, -0.7, 0.5, 0.9])


def quadratic(x: np.ndarray) -> float:
    return float(0.5 * x @ A @ x + B @ x + 7.0)


def driven(estimator: Any, f: Callable[[np.ndarray], float], rows: np.ndarray, mu: float) -> Estimate[Any]:
    d = rows.shape[1]
    x = X if d == D else np.zeros(d)
    routine = estimator(Ask(0, d, mu, lambda j: Vector(((j, 1.0),)), lambda v: np.zeros((0, 0)), 0))
    queries = next(routine)
    with pytest.raises(StopIteration) as stop:
        routine.send([f(x + sum((c * rows[j] for j, c in q.at.terms), np.zeros(d))) for q in queries])
    return stop.value.value  # type: ignore[no-any-return]


def slopes(e: Estimate[Any]) -> np.ndarray:
    return np.array([c for _, c in e.vector.terms])


# ---- curvature -------------------------------------------------------------------------------------------------------


def test_curvatures_are_those_along_the_directions() -> None:
    """c_j = v_j^T H v_j on a quadratic at any mu, and their mean over all signs is tr H."""
    for mu in (1e-2, 1.0):
        e = driven(Curved(16), quadratic, SIGNS, mu)
        np.testing.assert_allclose(e.aux, np.einsum("ni,ij,nj->n", SIGNS, A, SIGNS), rtol=1e-9)
        assert e.meters["trace"] == pytest.approx(np.trace(A), rel=1e-9)
    assert e.loss == quadratic(X)


def test_curved_is_central_with_one_more_evaluation() -> None:
    a, b = driven(Curved(16), quadratic, SIGNS, 0.1), driven(Central(16), quadratic, SIGNS, 0.1)
    assert a.vector == b.vector
    assert list(a.losses[1:]) == list(b.losses)
    assert (Curved(16).evaluations, Central(16).evaluations) == (33, 32)


def test_curvatures_are_a_value_that_a_tape_can_rebuild() -> None:
    c = Curvatures((1.0, -2.5))
    assert Curvatures._make([1.0, -2.5]) == c == (1.0, -2.5)
    assert pickle.loads(pickle.dumps(c)) == c
    run = Run(Store({"x": torch.ones(3)}), Method(Curved(2), Rademacher(), SGD()), 0)
    record = run.step(lambda store, queries, key: [0.0, 1.0, 1.0, 3.0, 3.0])
    mu = 2.0**-10
    assert record.aux == (2 / mu**2, 6 / mu**2)
    assert dict(record.meters) == {"trace": 4 / mu**2}


def test_noise_of_the_losses_in_the_curvature() -> None:
    """Deviation s of a loss gives the variance 6 s^2 / mu^4 of the docstring, within 5 %."""
    rng, s, mu, n = np.random.default_rng(0), 1e-3, 0.1, 20_000
    e = driven(Curved(n), lambda x: 0.0, np.zeros((n, D)), mu)
    noisy = []
    for _ in range(n):
        f0, plus, minus = rng.normal(scale=s, size=3)
        noisy.append((plus - 2 * f0 + minus) / mu**2)
    assert set(e.aux) == {0.0}
    assert np.var(noisy) == pytest.approx(6 * s**2 / mu**4, rel=0.05)


def test_probe_weights_are_those_of_the_paper() -> None:
    """w_j = 1 / max(floor, |c_j|^alpha) on each term; alpha 0 leaves Curved."""
    plain, weighted = (
        driven(Curved(16), quadratic, SIGNS, 0.1),
        driven(ProbeWeighted(16, 0.5, 2.0), quadratic, SIGNS, 0.1),
    )
    w = 1 / np.maximum(2.0, np.abs(plain.aux) ** 0.5)
    assert np.ptp(w) > 0.05
    assert np.sum(w == 0.5) >= 1, "the floor is reached"
    np.testing.assert_allclose(slopes(weighted), w * slopes(plain), rtol=1e-12)
    assert weighted.aux == plain.aux
    assert weighted.meters == plain.meters
    same = driven(ProbeWeighted(16, alpha=0.0), quadratic, SIGNS, 0.1)
    np.testing.assert_allclose(slopes(same), slopes(plain), rtol=1e-15)
    with pytest.raises(ValueError, match=r"floor .* > 0, got 0"):
        ProbeWeighted(2, floor=0.0)
    with pytest.raises(ValueError, match=r"alpha .* >= 0, got -1"):
        ProbeWeighted(2, alpha=-1)


def test_a_flat_probe_does_not_blow_up() -> None:
    """c = 0: the weight is 1 / floor, not 1 / 0."""
    e = driven(ProbeWeighted(16), lambda x: float(B @ x), SIGNS, 2.0**-4)
    assert np.all(np.isfinite(slopes(e)))


def test_the_defaults_are_those_of_the_paper() -> None:
    line = methods.describe("spsa15")
    assert line["evaluations_per_step"] == 321
    assert {k: line["defaults"][k] for k in ("lr", "mu", "n", "alpha", "floor", "law")} == {
        "lr": 5e-4, "mu": 5e-4, "n": 160, "alpha": 0.1, "floor": 1.0, "law": {"type": "Rademacher", "fixed_norm": True},
    } | {"law": line["defaults"]["law"]}  # fmt: skip
    assert line["law"] == "Rademacher"


def test_few_steps_of_many_probes_descend() -> None:
    loop = AskTell(start(), methods.spsa15(lr=0.1, n=32), seed=0)
    before = smooth(loop.x)
    for _ in range(15):
        loop.tell([smooth(x) for x in loop.ask()])
    assert smooth(loop.x) < before - 0.5


# ---- Richardson ------------------------------------------------------------------------------------------------------


def test_richardson_is_exact_on_polynomials_of_degree_four() -> None:
    def quartic(x: np.ndarray) -> float:
        return float(np.sum(x**4) - 2 * x[0] ** 3 + x[1] * x[2] ** 2)

    h = 1e-4
    for v in SIGNS:
        exact = (quartic(X + h * v) - quartic(X - h * v)) / (2 * h)  # to 1e-8
        assert slopes(driven(Richardson(1), quartic, v[None], 1.5))[0] == pytest.approx(exact, abs=1e-6)
        assert abs(slopes(driven(Central(1), quartic, v[None], 1.5))[0] - exact) > 0.1 or abs(v.sum()) < 4


def test_the_noise_that_richardson_costs() -> None:
    """Deviation 1.90 s / mu of a slope, against 0.71 s / mu for central differences, within 3 %."""
    rng, s, mu, n = np.random.default_rng(0), 1e-3, 0.5, 20_000
    for estimator, stated in ((Richardson(n), 1.90), (Central(n), 0.71)):
        e = driven(estimator, lambda x: float(rng.normal(scale=s)), np.zeros((n, D)), mu)
        assert np.std(slopes(e) * n) == pytest.approx(stated * s / mu, rel=0.03)


# ---- clipping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clip", "stated"), [(0.5, 0.132), (1.0, 0.261), (3.0, 0.683), (9.0, 0.997)])
def test_clipping_shrinks_the_gradient_and_keeps_its_direction(clip: float, stated: float) -> None:
    """E[g] = (2 Phi(C/|grad f|) - 1) grad f for Gaussian z, |grad f| = 3: not unbiased, as the paper has it."""
    rng, d, n = np.random.default_rng(6), 5, 60_000
    G = rng.normal(size=d)
    G *= 3 / np.linalg.norm(G)
    Z = rng.normal(size=(n, d))
    per_direction = slopes(driven(Central(n, clip), lambda x: float(G @ x), Z, 0.1)) * n
    assert np.abs(per_direction).max() <= clip * (1 + 1e-12)
    theory = math.erf(clip / 3 / math.sqrt(2))  # 2 Phi(y) - 1 = erf(y / sqrt 2)
    assert theory == pytest.approx(stated, abs=0.001)
    terms = per_direction[:, None] * Z
    g, error = terms.mean(0), terms.std(0) / math.sqrt(n)
    assert np.all(np.abs(g - theory * G) <= 4 * error)


def test_clipping_bounds_each_slope_not_their_mean() -> None:
    rows = np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    e = driven(Central(2, clip=0.5), lambda x: float(10 * x[0] + 0.1 * x[1]), rows, 0.5)
    np.testing.assert_allclose(slopes(e), [0.25, 0.05], rtol=1e-12)
    with pytest.raises(ValueError, match=r"clip .* > 0, got 0.0; use None"):
        Central(1, clip=0.0)


def test_clipped_runs_survive_a_cliff() -> None:
    """A loss with slopes of 1e6 at the start: unclipped it leaves for good, clipped it stays and descends."""

    def cliff(x: np.ndarray) -> float:
        return float(np.sum(x**2) + 1e6 * np.maximum(x[0] - 0.149, 0))

    ends = {}
    for name, clip in (("clipped", 2.0), ("free", None)):
        loop = AskTell(start(), Method(Central(1, clip), Rademacher(), SGD(), mu=1e-3, lr=5e-3), seed=0)
        for _ in range(200):
            loop.tell([cliff(x) for x in loop.ask()])
        ends[name] = float(np.sum(loop.x**2))
    assert ends["clipped"] < 1.0
    assert ends["free"] > 1e2
