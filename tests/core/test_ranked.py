"""Estimates that forget the scale of the losses: orders, preferences, z-scored fitness."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from small_problems import dense, smooth, start

from zograd import AskTell, Method, methods
from zograd.core.query import Ask
from zograd.core.run import Run
from zograd.core.vector import Noise, Vector
from zograd.estimators import Mirrored, Preference, Ranked
from zograd.laws import Gaussian, Rademacher
from zograd.noise import Kind
from zograd.rules import SGD
from zograd.stores import Store


def coefficients(estimator, losses: list[float], mu: float = 1.0) -> np.ndarray:
    """The coefficient of each direction, told these losses."""
    routine = estimator(Ask(0, 3, mu, lambda j: Vector(((j, 1.0),)), lambda v: np.zeros((0, 0)), 0))
    next(routine)
    with pytest.raises(StopIteration) as stop:
        routine.send(losses)
    found = dict(stop.value.value.vector.terms)
    return np.array([found[j] for j in sorted(found)])


# ---- orders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 8, 15])
@pytest.mark.parametrize("weights", ["linear", "log", "top"])
def test_weights_rise_with_the_loss_and_sum_to_zero(weights, n: int) -> None:
    """sum w = 0, sum |w| = 1, the best direction has the most negative weight; equal losses weigh nothing."""
    losses = np.random.default_rng(n).permutation(n).astype(float)
    w = coefficients(Ranked(n, weights), list(losses))
    assert np.abs(w).sum() == pytest.approx(1)
    assert w.sum() == pytest.approx(0, abs=1e-15)
    assert np.all(np.diff(w[np.argsort(losses)]) >= 0)
    assert w[np.argmin(losses)] < 0 < w[np.argmax(losses)]
    np.testing.assert_array_equal(coefficients(Ranked(n, weights), [4.0] * n), np.zeros(n))


def test_each_kind_of_weights() -> None:
    losses = [3.0, 1.0, 2.0, 9.0]
    logs = np.array([np.log(2.5 / 2), -np.log(2.5), -np.log(2.5 / 2), np.log(2.5)])
    np.testing.assert_allclose(coefficients(Ranked(4, "log"), losses), logs / np.abs(logs).sum(), rtol=1e-14)
    np.testing.assert_array_equal(coefficients(Ranked(4, "top", top=2), losses), np.array([1, -1, -1, 1]) / 4)
    np.testing.assert_array_equal(coefficients(Ranked(4, "top"), losses), np.array([0, -1, 0, 1]) / 2)
    np.testing.assert_array_equal(coefficients(Ranked(4, "top", top=1), [1.0, 1.0, 5.0, 9.0]), [-0.25, -0.25, 0, 0.5])


@pytest.mark.parametrize(
    ("n", "values", "linear", "log", "signs"), [(10, 0.282, 0.271, 0.272, 0.247), (50, 0.574, 0.563, 0.566, 0.494)]
)
def test_the_cosines_of_the_specification(n: int, values: float, linear: float, log: float, signs: float) -> None:
    """Mean cosine with the gradient of a linear f in d = 100, within 0.01; ranks keep 95 % of that of the values."""
    rng, d = np.random.default_rng(1), 100
    G = rng.normal(size=d)
    G /= np.linalg.norm(G)
    found: dict[str, list[float]] = {"values": [], "linear": [], "log": [], "signs": []}
    for _ in range(1500):
        V = rng.normal(size=(n, d))
        f = V @ G
        w = {
            "values": f - f.mean(),
            "linear": coefficients(Ranked(n), list(f)),
            "log": coefficients(Ranked(n, "log"), list(f)),
            "signs": np.sign(f - f.mean()),
        }
        for name, c in w.items():
            g = c @ V
            found[name].append(float(g @ G / np.linalg.norm(g)))
    means = {name: np.mean(c) for name, c in found.items()}
    assert means["values"] == pytest.approx(values, abs=0.01)
    assert means["signs"] == pytest.approx(signs, abs=0.02)
    for name, stated in (("linear", linear), ("log", log)):
        assert means[name] == pytest.approx(stated, abs=0.015), name
        assert means[name] > 0.95 * means["values"], name


def test_settings_of_ranks_are_checked() -> None:
    with pytest.raises(ValueError, match="unknown weights 'cma'; use one of linear, log, top"):
        Ranked(8, "cma")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 to n/2, here 4; got weights='top'"):
        Ranked(8, "top", top=5)
    with pytest.raises(ValueError, match="got weights='linear'"):
        Ranked(8, top=2)


# ---- preferences -----------------------------------------------------------------------------------------------------


def test_preference_uses_the_order_within_a_pair_only() -> None:
    """Scales may differ from pair to pair; a tie contributes nothing; one pair is the rank of two."""
    np.testing.assert_array_equal(coefficients(Preference(2), [1.0, 2.0, 9.0, 5.0]), np.array([-1, 1, 1, -1]) / 4)
    np.testing.assert_array_equal(
        coefficients(Preference(2), [1.0, 2.0, 9.0, 5.0]), coefficients(Preference(2), [-7.0, 99.0, 0.2, 0.1])
    )
    np.testing.assert_array_equal(coefficients(Preference(2), [3.0, 3.0, 0.0, 1.0]), np.array([0, 0, -1, 1]) / 4)
    for losses in ([1.0, 2.0], [5.0, 3.0], [2.0, 2.0]):
        np.testing.assert_array_equal(coefficients(Preference(1), losses), coefficients(Ranked(2), losses))


def test_the_expectation_of_a_preference_is_along_the_gradient() -> None:
    """Linear f, d = 6: the mean over 40,000 pairs is parallel to grad f, cosine above 0.999."""
    rng, d, n = np.random.default_rng(4), 6, 40_000
    G, V = rng.normal(size=d), rng.normal(size=(2 * n, d))
    g = coefficients(Preference(n), list(V @ G)) @ V
    assert g @ G / np.linalg.norm(g) / np.linalg.norm(G) > 0.999


# ---- evolution strategies --------------------------------------------------------------------------------------------


def test_fitness_is_standardised_over_the_population() -> None:
    """(A+ - A-) / 2n with A of mean 0 and population variance 1."""
    losses = [3.0, 1.0, 2.0, 9.0, 4.0, 4.5]
    A = (np.array(losses) - np.mean(losses)) / np.std(losses)
    np.testing.assert_allclose(coefficients(Mirrored(3), losses), (A[::2] - A[1::2]) / 6, rtol=1e-14)
    np.testing.assert_array_equal(coefficients(Mirrored(3), [2.5] * 6), np.zeros(3))
    almost = [2.5 + 1e-12 * k for k in range(6)]  # below the floor: rounding is not fitness
    assert np.abs(coefficients(Mirrored(3), almost)).max() < 1e-4
    with pytest.raises(ValueError, match=r"floor .* must be > 0, got 0"):
        Mirrored(3, floor=0.0)


def test_antithetic_points_are_mirror_images() -> None:
    run = Run(Store({"x": torch.zeros(9, dtype=torch.float64)}), methods.mirrored_es(n=4, mu=0.5), 3)
    asked = [dense(query.at, (9,)) for query in run.ask()]
    for plus, minus in zip(asked[::2], asked[1::2], strict=True):
        np.testing.assert_array_equal(plus, -minus)
    assert len({tuple(p) for p in asked}) == 8


@pytest.mark.parametrize("law", [Gaussian(), Rademacher()], ids=lambda law: type(law).__name__)
def test_no_two_tensors_share_noise(law) -> None:
    """Four tensors of one shape: what is added to them has correlation below 3/sqrt(n) for every pair. Seeding the
    generator alike for every tensor, as released code does, gives correlation 1."""
    n = 10_000
    store = Store({f"w{k}": torch.zeros(100, 100) for k in range(4)})
    point = Run(store, methods.mirrored_es(n=2, mu=1.0, law=law), 1).ask()[0].at
    seen = np.stack([store.point_(torch.empty(n), leaf, point).numpy() for leaf in store.leaves])
    assert np.abs(np.corrcoef(seen) - np.eye(4)).max() < 3 / np.sqrt(n)
    torch.manual_seed(5)
    alike = []
    for _ in range(4):
        torch.manual_seed(5)
        alike.append(torch.randn(n).numpy())
    assert np.abs(np.corrcoef(alike) - np.eye(4)).max() > 3 / np.sqrt(n)


def test_members_of_a_population_are_independent() -> None:
    store = Store({"w": torch.zeros(10_000)})
    queries = Run(store, methods.mirrored_es(n=3, mu=1.0), 1).ask()
    seen = np.stack([store.point_(torch.empty(10_000), store.leaves[0], q.at).numpy() for q in queries[::2]])
    assert np.abs(np.corrcoef(seen) - np.eye(3)).max() < 3 / 100


@pytest.mark.parametrize("name", ["rank", "preference", "mirrored_es"])
def test_they_descend(name: str) -> None:
    from zograd import AskTell

    loop = AskTell(start(), methods.make(name, lr=0.05), seed=0)
    before = smooth(loop.x)
    for _ in range(100):
        loop.tell([smooth(x) for x in loop.ask()])
    assert smooth(loop.x) < before - 0.5


def test_the_moves_are_made_of_noise_names() -> None:
    """No slots: a step is a list of keys and coefficients."""
    run = Run(Store({"w": torch.zeros(8)}), methods.preference(n=2), 0)
    record = run.tell([1.0, 2.0, 4.0, 3.0][: len(run.ask())])
    assert record is not None
    assert [type(e) for e, _ in record.vector.terms] == [Noise] * 4
    assert {e.kind for e, _ in record.vector.terms} == {Kind.SIGN}  # type: ignore[attr-defined]


@pytest.mark.parametrize("estimator", [Ranked(16), Ranked(16, "top"), Preference(8)], ids=str)
def test_a_failed_point_ranks_last_and_the_others_count(estimator: Any) -> None:
    """NaN, infinity and a value above all others give the same step."""
    f = lambda x: float(np.sum((x - 1) ** 2))  # noqa: E731
    moved = []
    for bad in (math.nan, math.inf, 1e9):
        loop = AskTell(np.zeros(5), Method(estimator, Rademacher(), SGD(), lr=0.1))
        record = loop.tell([bad, *(f(x) for x in loop.ask()[1:])])
        assert record is not None
        assert not record.refused
        moved.append(loop.x)
    np.testing.assert_array_equal(moved[0], moved[1])
    np.testing.assert_array_equal(moved[0], moved[2])
