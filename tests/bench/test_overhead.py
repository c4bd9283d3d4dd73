"""What a run of a black box costs beside the function: calls in place of time, and memory."""

from __future__ import annotations

import gc
import sys
import tracemalloc

import numpy as np
import pytest

import zograd as zo
from zograd.methods.defaults import LARGE


def f(x):
    return float(x[0])


def calls(run):
    """Calls of Python and C functions: unlike seconds, the same on a busy machine."""
    made = 0

    def count(frame, event, argument):
        nonlocal made
        made += event in ("call", "c_call")

    before = sys.getprofile()
    gc.collect()
    gc.disable()  # what other tests left behind has finalizers, whose calls would count
    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(before)
        gc.enable()
    return made


@pytest.mark.parametrize(
    ("settings", "most"), [({"lr": 1e-3}, 165), ({"lr": 1e-3, "n": 4}, 85), ({"lr": "auto"}, 230)], ids=str
)
def test_an_evaluation_takes_few_calls(settings, most):
    """Measured: 155, 78 and 221; 221, 121 and 268 when each point was made for itself."""
    x0, method = np.ones(100), zo.methods.zo_sgd(**settings)
    zo.minimize(f, x0, method, budget=100)  # modules and tables that a first run loads
    few, many = (calls(lambda budget=budget: zo.minimize(f, x0, method, budget=budget)) for budget in (200, 1000))
    assert (many - few) / 800 < most


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
