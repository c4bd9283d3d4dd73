"""What a run of a black box costs beside the function, as a ratio to a plain NumPy loop in the same process."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

import zograd as zo
from zograd.methods.defaults import LARGE

ROUNDS, EVALUATIONS = 7, 1000


def f(x):
    return float(x[0])


def loop(x, mu=1e-3, lr=1e-3):
    """The two-point step as one would write it by hand."""
    rng, x = np.random.default_rng(0), x.copy()
    for _ in range(EVALUATIONS // 2):
        v = 2.0 * rng.integers(0, 2, x.size) - 1.0
        x -= lr * (f(x + mu * v) - f(x - mu * v)) / (2 * mu) * v


@pytest.mark.parametrize(
    ("settings", "most"), [({"lr": 1e-3}, 32), ({"lr": 1e-3, "n": 4}, 15), ({"lr": "auto"}, 40)], ids=str
)
def test_an_evaluation_costs_a_few_of_those_of_a_loop(settings, most):
    """Measured: 18, 7 and 21; 40, 20 and 55 before keys were compiled and steps made fewer objects."""
    x0, method = np.ones(100), zo.methods.zo_sgd(**settings)

    def cpu(run):
        start = time.process_time()
        run()
        return time.process_time() - start

    times = [
        (cpu(lambda: zo.minimize(f, x0, method, budget=EVALUATIONS)), cpu(lambda: loop(x0))) for _ in range(ROUNDS)
    ]
    ours, plain = (min(column) for column in zip(*times, strict=True))
    assert ours / plain < most


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_a_large_run_needs_the_iterate_and_one_point(dtype):
    """x0 is not copied, no best point is kept, and the points of a run take one array, unless f keeps them."""
    x0 = np.zeros(LARGE + 1, dtype)
    target = np.linspace(-1, 1, x0.size, dtype=dtype)
    kept = []

    def distance(x):
        x -= target
        return float(np.dot(x, x))

    def keeping(x):
        kept.append(x)
        return float(np.dot(x - target, x - target))

    zo.minimize(f, x0, budget=10)  # modules and tables that a first run loads
    tracemalloc.start()
    try:
        result = zo.minimize(distance, x0, budget=60)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.3 * x0.nbytes
    assert not x0.any()
    assert result.best_x is None
    other = zo.minimize(keeping, x0, budget=60)
    assert other.x.tobytes() == result.x.tobytes()
    assert len({x.tobytes() for x in kept}) > 40  # none was overwritten
