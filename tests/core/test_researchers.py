"""What a researcher met who computed the kernel's numbers anew: wrong estimates, lost terms, and admitted misfits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import zograd as zo
from zograd import estimators as E
from zograd import laws as L
from zograd import rules as R
from zograd import spaces as S
from zograd.core.vector import Noise
from zograd.estimators.evolution import root_of_distance
from zograd.learning_rate import AutoRate
from zograd.learning_rate.levels import with_levels


def steps(method: Any, tensors: dict[str, Tensor], loss: Callable[..., Any], n: int, seed: int = 0) -> list[Any]:
    """The records of n steps."""
    run = zo.Run(zo.Store(tensors, space=method.space), method, seed)
    return [run.step(zo.oracles.sequential(loss)) for _ in range(n)]


def walled(x: Any) -> float:
    """A sum of squares behind a wall at x_0 = 1."""
    return float(x @ x) if x[0] < 1 else math.nan


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "with levels"])
def test_central_coordinates_take_the_other_side_of_one_failure_alone(wrapped: bool) -> None:
    estimator: Any = E.Coordinates(4, central=True)
    estimator = with_levels(estimator, 4, 8) if wrapped else estimator
    found = zo.gradient(walled, np.array([0.9999, 2.0, 3.0, 4.0]), estimator=estimator, mu=1e-3).value
    assert found == pytest.approx([2.0, 4.0, 6.0, 8.0], abs=2e-3)


@pytest.mark.parametrize("players", [False, True], ids=["coordinates", "players"])
@pytest.mark.parametrize("rule", ["factors", "muon"])
def test_rules_of_factors_refuse_estimates_with_other_parts(rule: str, players: bool) -> None:
    law: Any = L.LowRank(2) if rule == "factors" else L.Projected(2)
    made: Any = R.FactorMomentum(0.9, 2) if rule == "factors" else R.SubspaceMuon()
    others: list[Any] = [E.SVRG(1), E.Page(1), E.Coordinates(24), E.Recentred(1)]
    for estimator in [E.Saddle(("w",), E.Central(2)), E.Players((("w",), ("b",)))] if players else others:
        with pytest.raises(TypeError, match="reads the factors of directions, and an estimate of"):
            zo.Method(estimator, law, made, mu=1e-4, lr=1e-2)


def test_the_distance_of_cr_fm_nes_weighs_as_its_authors_do() -> None:
    """w ~ w_rank exp(alpha |z|), alpha = h min(1, sqrt(n / d)), (1 + h^2) exp(h^2 / 2) / 0.24 = 10 + d.

    h is that root: the paper's h^-1(d) is the inverse of a function (`get_h_inv` in the authors' code).
    """
    d, n = 40, 16
    x = torch.full((d,), 30.0, dtype=torch.float64)
    store = zo.Store({"x": x}, space=S.Diagonal())
    method = zo.Method(E.RestrictedEvolution(n), L.Gaussian(), R.FastMovingNES(), S.Diagonal(), mu=0.1, lr=0.1)
    run = zo.Run(store, method, seed=0)
    ranked = np.maximum(0, np.log(n / 2 + 1) - np.log(np.arange(1, n + 1)))
    slopes = []
    for _ in range(12):
        record = run.step(zo.oracles.sequential(lambda: (x - 1).square().sum()))
        z = [zo.Vector(((e, 1.0),)) for e, _ in record.vector.terms if isinstance(e, Noise)]
        lengths = np.array([math.sqrt(sum(float(b.v[0] @ b.v[0]) for b in store.blocks(v))) for v in z])
        w = np.array(record.aux[5 + n // 2 :]) + 2 / n  # of a pair
        plain = ranked[np.argsort(np.argsort(record.losses))].reshape(-1, 2).sum(1)
        has = plain > 0
        ratio = np.log(w[has] / plain[has])
        if np.ptp(ratio) > 1e-9:  # else the path is short, and ranks count alone
            slopes.append(np.polyfit(lengths[has], ratio, 1)[0])
    assert slopes
    assert slopes == pytest.approx([1.57392 * math.sqrt(n / d)] * len(slopes), rel=1e-3)
    assert [root_of_distance(k) for k in (10, 1000)] == pytest.approx([1.180, 2.619], abs=1e-3)


def test_a_saddle_hands_no_scalars_on() -> None:
    for rule, inner, space in (
        (R.DiagonalNewton(), E.Curved(1), S.Diagonal()),
        (R.AdaMU(), E.SimulatedMomentum(), S.Euclidean()),
    ):
        with pytest.raises(TypeError, match="Saddle"):
            zo.Method(E.Saddle(("y",), inner), L.Gaussian(), rule, space, mu=1e-3, lr=1e-3)


@pytest.mark.parametrize("law", [L.TopScores(0.1, L.squared_weights), L.Orthogonal(), L.Walsh(), L.LowRank(2)])
def test_aligned_directions_are_those_of_independent_isotropic_laws(law: Any) -> None:
    with pytest.raises(TypeError, match=rf"independent, and {type(law).__name__} draws others; use law=Sphere\(\)"):
        zo.Method(E.Aligned(4), law, R.SGD(), mu=1e-3, lr=0.1)
    with pytest.raises(TypeError, match="or fixed_norm=False"):
        zo.Method(E.Aligned(4), L.Rademacher(), R.SGD(), mu=1e-3, lr=0.1)
    zo.Method(E.Aligned(4, fixed_norm=False), L.Rademacher(), R.SGD(), mu=1e-3, lr=0.1)


def test_two_directions_that_have_to_be_independent_are_not_orthogonal() -> None:
    with pytest.raises(TypeError, match=r"those of Orthogonal are orthogonal to each other: .*law=Gaussian\(\)"):
        zo.Method(E.ZPDVR(), L.Orthogonal(), R.SGD(), mu=1e-3, lr=0.1)


@pytest.mark.parametrize(
    ("estimator", "rule"),
    [
        (E.Page(1), R.SGD()),
        (E.Tracker(1), R.SGD()),
        (E.ZPDVR(), R.SGD()),
        (E.Extrapolated(E.Coordinates(2, central=True)), R.FISTA(zo.sets.L1(0.1))),
    ],
    ids=["page", "tracker", "zpdvr", "fista"],
)
def test_slopes_that_overflow_refuse_the_step(estimator: Any, rule: Any) -> None:
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def loss(rows: Any = None) -> float:
        return 1e308 if float((x + 0)[0]) > 1 else float((x + 0).square().sum())

    records = steps(zo.Method(estimator, L.Rademacher(), rule, mu=1e-3, lr=1e-3), {"x": x}, loss, 2)
    assert records[0].refused
    assert bool(torch.isfinite(x).all())


@pytest.mark.parametrize(
    "estimator", [E.Central(1), E.Richardson(1), *(E.Unbiased(1, k) for k in (1, 2, 3, 4))], ids=repr
)
def test_the_trace_does_not_depend_on_the_radii(estimator: Any) -> None:
    """v^T H v of signs is tr H exactly, for a diagonal H."""
    h = torch.linspace(1, 3, 20, dtype=torch.float64)
    x = torch.ones(20, dtype=torch.float64)
    method = zo.Method(estimator, L.Rademacher(), R.SGD(), mu=1e-2, lr=AutoRate(limit=1e-12))
    traces = [dict(r.meters).get("trace") for r in steps(method, {"x": x}, lambda: 0.5 * (h * x * x).sum(), 30)]
    measured = [t for t in traces if t is not None]
    assert len(measured) >= 8
    assert measured == pytest.approx([40.0] * len(measured), rel=1e-3)


def test_a_wrapper_has_the_length_of_what_is_inside() -> None:
    with pytest.raises(ValueError, match="lr='auto' needs an estimate with the length of the gradient"):
        zo.Method(E.SAM(E.Ranked(4)), L.Rademacher(), R.SGD(), mu=1e-2, lr="auto")
    for estimator in (E.SVRG(full=E.Ranked(4)), E.LooplessSVRG(full=E.Ranked(4)), E.Page(full=E.Ranked(4))):
        with pytest.raises(TypeError, match="which does not have the length of the gradient"):
            zo.Method(estimator, L.Rademacher(), R.SGD(), mu=1e-2, lr=1e-2)
    assert E.SAM(E.Ranked(4)).feedback == "order"


@pytest.mark.parametrize("inner", [E.SVRG(1), E.LooplessSVRG(1), E.Page(1), E.ZPDVR(), E.SAM(E.Central(1))])
def test_queries_that_do_not_shrink_are_not_kept_inside(inner: Any) -> None:
    ball = zo.sets.L2Ball(1.0)
    with pytest.raises(TypeError, match=r"Feasible keeps queries inside that shrink with mu, and"):
        zo.Method(E.Feasible(inner, ball), L.Gaussian(), R.Proximal(ball), mu=1e-4, lr=1e-2)


def test_evolution_rules_name_their_estimator() -> None:
    for rule in (R.SeparableNES(), R.SeparableCMA()):
        with pytest.raises(TypeError, match="reads weights by rank off the estimate, and RestrictedEvolution has"):
            zo.Method(E.RestrictedEvolution(8), L.Gaussian(), rule, S.Diagonal(), mu=1.0, lr=1.0)
    with pytest.raises(TypeError, match=r"takes weights whose sum is 1, .* use Evolution\(n, weights='cma'\)"):
        zo.Method(E.Evolution(12, "nes"), L.Gaussian(), R.SeparableCMA(), S.Diagonal(), mu=1.0, lr=1.0)


@pytest.mark.parametrize(
    "settings", [{"lr": 0.5}, {"weight_decay": 0.1}, {"rule": R.Momentum(0.9)}], ids=["lr", "decay", "momentum"]
)
def test_particles_stay_where_they_are_with_plain_steps_alone(settings: dict[str, Any]) -> None:
    given = {"rule": R.SGD(), "lr": 1.0, "weight_decay": 0.0} | settings
    with pytest.raises(TypeError, match=r"use rule=SGD\(\), lr=1.0 and weight_decay=0"):
        zo.Method(E.Consensus(4), L.Gaussian(), given.pop("rule"), mu=1.0, **given)


def test_the_two_estimates_of_sam_share_no_direction() -> None:
    x = torch.ones(6, dtype=torch.float64)
    run = zo.Run(zo.Store({"x": x}), zo.Method(E.SAM(E.Preference(2)), L.Rademacher(), R.SGD(), mu=1e-2, lr=0.0))
    drawn: list[set[Any]] = []
    while (queries := run.ask()) and len(drawn) < 2:
        drawn.append({e for q in queries for e, _ in q.at.terms if isinstance(e, Noise)})
        run.tell([float(k) for k in range(len(queries))])
    first, second = drawn
    assert len(first) == 4
    assert len(second - first) == 4


def test_an_empty_matrix_is_left_alone() -> None:
    tensors = {"w": torch.ones(3, 3), "e": torch.zeros(0, 3)}
    method = zo.methods.salaad(lr=1e-3)
    steps(method, tensors, lambda: tensors["w"].square().sum() + tensors["e"].sum(), 20)
