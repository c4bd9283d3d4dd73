"""`zograd.gradient`: an estimate as an array, in the form of x, from the same points for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import zograd as zo
from zograd.estimators import SVRG, Central, Coordinates, Forward, Ranked
from zograd.laws import Gaussian, Rademacher


def smooth(x: np.ndarray) -> float:
    return float(np.sum(np.sin(x)) + x[0] * x[1] ** 2)


X = np.array([0.4, -1.2, 0.7, 2.0])
SLOPE = np.cos(X) + np.array([X[1] ** 2, 2 * X[0] * X[1], 0, 0])


def test_differences_along_all_coordinates_are_the_gradient() -> None:
    found = zo.gradient(smooth, X, estimator=Coordinates(4, central=True))
    assert found.value == pytest.approx(SLOPE, abs=1e-5)
    assert found.evaluations == len(found.losses) == 8


def test_one_direction_is_its_formula() -> None:
    """The points told are x + mu v and x - mu v; the value is their quotient times v."""
    points: list[np.ndarray] = []

    def watched(x: np.ndarray) -> float:
        points.append(x.copy())
        return smooth(x)

    found = zo.gradient(watched, X, mu=0.125, seed=3)
    v = (points[0] - X) / 0.125
    assert sorted(set(np.abs(v))) == [1.0]
    assert points[1] == pytest.approx(X - 0.125 * v, abs=1e-15)
    assert found.value == pytest.approx((smooth(points[0]) - smooth(points[1])) / 0.25 * v, abs=1e-12)


def test_the_mean_over_steps_is_the_gradient() -> None:
    values = [zo.gradient(smooth, X, estimator=Central(2), law=Gaussian(), mu=1e-3, step=t).value for t in range(1500)]
    error = np.std(values, axis=0) / np.sqrt(len(values))
    assert np.all(np.abs(np.mean(values, axis=0) - SLOPE) < 4 * error)


def test_seed_and_step_fix_the_directions_which_no_run_draws() -> None:
    same = [zo.gradient(smooth, X, seed=5, step=2).value for _ in range(2)]
    assert np.array_equal(*same)
    for other in (zo.gradient(smooth, X, seed=6, step=2), zo.gradient(smooth, X, seed=5, step=3)):
        assert not np.array_equal(other.value, same[0])
    big = np.zeros(64)
    loop = zo.AskTell(big, zo.Method(Central(1), Rademacher(), zo.rules.SGD(), mu=1.0), seed=5)
    asked: list[np.ndarray] = []
    zo.gradient(lambda x: asked.append(x.copy()) or 0.0, big, mu=1.0, seed=5)  # type: ignore[func-returns-value]
    assert not np.array_equal(loop.ask()[0], asked[0])


def test_the_value_has_the_form_of_x() -> None:
    x = {"a": torch.ones(2, 2, dtype=torch.float64), "b": np.float32([1, 2, 3])}
    exact = Coordinates(7, central=True)
    found = zo.gradient(lambda p: float((p["a"] ** 2).sum()) + float(p["b"].sum()), x, estimator=exact, mu=0.25).value
    assert isinstance(found["a"], torch.Tensor)
    assert torch.allclose(found["a"], torch.full((2, 2), 2.0, dtype=torch.float64))
    assert found["b"].dtype == np.float32
    assert found["b"] == pytest.approx(np.ones(3))
    assert zo.gradient(lambda x: 3 * x, 1.0).value == pytest.approx(3.0)


@pytest.mark.parametrize("estimator", [Forward(3), Ranked(4)])
def test_other_estimators_count_their_evaluations(estimator: zo.estimators.Estimator) -> None:
    found = zo.gradient(smooth, X, estimator=estimator)
    assert found.evaluations == estimator.evaluations
    assert np.all(np.isfinite(found.value))


def test_what_has_no_estimate_is_refused() -> None:
    before = X.copy()
    with pytest.raises(TypeError, match=r"SVRG remembers earlier ones \(slots anchor, anchor_gradient\); use Central"):
        zo.gradient(smooth, X, estimator=SVRG(1))
    with pytest.raises(TypeError, match="estimator must be a zograd"):
        zo.gradient(smooth, X, estimator="central")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mu is the radius of the probes and must be > 0, got 0"):
        zo.gradient(smooth, X, mu=0)
    with pytest.raises(ValueError, match="f is not finite at any of the 2 points around x"):
        zo.gradient(lambda x: float("nan"), X)
    with pytest.raises(ValueError, match="x0 is empty"):
        zo.gradient(smooth, np.zeros(0))
    assert np.array_equal(X, before)
