"""Schedules refined from a run, against the formula in loops, and the norms that a tape gives."""

from __future__ import annotations

import numpy as np
import pytest

import zograd as zo
from zograd.core.schedules import Table
from zograd.learning_rate import refined, slope_norms


def by_formula(norms: list[float], width: float) -> list[float]:
    """The schedule of the paper, in loops: a median over a window with reflected ends, and sums over later steps."""
    n, half = len(norms), int(width * len(norms)) // 2
    reflected = [
        norms[-i - 1] if i < 0 else norms[2 * n - 1 - i] if i >= n else norms[i] for i in range(-half, n + half)
    ]
    smooth = [sorted(reflected[t : t + 2 * half + 1])[half] for t in range(n)]
    w = [s**-2 for s in smooth]
    eta = [w[t] * sum(w[t + 1 :]) for t in range(n)]
    return [e / max(eta) for e in eta]


@pytest.mark.parametrize("width", [0.1, 0.3])
def test_the_schedule_is_the_formula_of_the_paper(width: float) -> None:
    norms = np.random.default_rng(0).lognormal(size=40) * np.linspace(3, 0.3, 40)
    shape = refined(norms, 0.5, width=width)
    expected = by_formula(norms.tolist(), width)
    assert shape.values == pytest.approx(expected, rel=1e-9)
    assert [shape(t) for t in range(40)] == pytest.approx(0.5 * np.array(expected), rel=1e-9)
    assert refined(1e7 * norms, 0.5, width=width).values == pytest.approx(shape.values, rel=1e-9)


def test_equal_norms_give_linear_decay_and_falling_norms_a_rise() -> None:
    flat = refined(np.ones(100))
    assert [flat(t) for t in range(100)] == pytest.approx([1 - t / 99 for t in range(100)])
    falling = refined(np.linspace(3, 0.2, 100))
    peak = int(np.argmax(falling.values))
    assert 10 < peak < 99
    assert np.all(np.diff(falling.values[10:peak]) > 0)


def test_it_stretches_to_another_number_of_steps() -> None:
    norms = np.linspace(2, 1, 50)
    own, longer, few = refined(norms), refined(norms, total=99), refined(norms, knots=8)
    assert [longer(2 * t) for t in range(50)] == pytest.approx(own.values, rel=1e-9)
    assert len(few.values) == 8
    assert few(0) == pytest.approx(own(0), rel=0.01)
    assert few(49) == own(49) == 0.0


@pytest.mark.parametrize("n", [1, 5])
def test_the_norms_of_a_run_are_those_of_its_slopes(n: int) -> None:
    """sqrt(mean of squared slopes), from the coefficients, against slopes of f = g x, which are g v."""
    g = np.random.default_rng(1).standard_normal(30)
    method = zo.methods.make("zo_sgd", n=n, lr=1e-9, mu=1e-3)
    records = []
    zo.minimize(lambda x: float(g @ x), np.zeros(30), method, budget=600, callback=lambda r: records.append(r.record))
    norms = slope_norms(r.vector for r in records)
    assert len(norms) == len(records) > 500 // (2 * n)
    assert np.mean(norms**2) == pytest.approx(g @ g, rel=0.25)
    slopes = [(r.losses[0] - r.losses[1]) / 2e-3 for r in records]
    if n == 1:
        assert norms == pytest.approx(np.abs(slopes), rel=1e-6)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: refined([1.0] * 9), "at least 10 steps"),
        (lambda: refined([1.0] * 9 + [-1.0]), "finite and >= 0"),
        (lambda: refined([1.0] * 20, width=0), "width=0"),
        (lambda: slope_norms([zo.Vector(((zo.vector.Slot("gradient"), 1.0),))]), "take the run of a method such as"),
        (lambda: Table(1.0, total=5), "at least one value"),
        (lambda: Table(1.0, total=5, values=(1.0, float("nan"))), "all finite"),
        (lambda: Table(1.0, total=5, warmup=5, values=(1.0,)), "total > warmup"),
    ],
)
def test_what_makes_no_schedule_is_refused(wrong, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wrong()


def test_a_table_rises_over_its_warm_up() -> None:
    shape = Table(2.0, total=8, warmup=4, values=(1.0, 0.0))
    assert [shape(t) for t in range(9)] == pytest.approx([0.5, 1, 1.5, 2, 2, 4 / 3, 2 / 3, 0, 0])
