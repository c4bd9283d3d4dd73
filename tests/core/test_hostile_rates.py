"""Rates, radii and oracles, as users who trust nothing would try them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zograd as zo
from zograd import methods
from zograd.core.method import Method
from zograd.core.query import Query
from zograd.core.vector import Noise, Vector
from zograd.estimators import Central, Coordinates, Richardson
from zograd.laws import Gaussian, Sphere, Walsh
from zograd.learning_rate import AutoRate, TrustRate, slope_norms
from zograd.learning_rate.auto import LEAST, Measured
from zograd.noise import Kind
from zograd.oracles import batched, sequential
from zograd.oracles.feature_reuse import reusing
from zograd.rules import SGD
from zograd.stores import Store

# ---- the measured rate -----------------------------------------------------------------------------------------------


def test_a_level_that_has_risen_for_good_halves_the_rate_once() -> None:
    rule = AutoRate()
    state = rule.initial()
    meters = {"slope2": 1.0, "trace": 1.0, "curvature2": 1.0}
    signals = []
    for step in range(400):
        rule.observe(state, (300.0 if step > 50 else 0.0) + math.sin(step), meters)
        rule.moved(state, 1e-9)
        signals.append(state["signal"])
    assert min(signals) >= LEAST
    level = [s for before, s in pairwise(signals) if s == before / 2]
    assert len(level) < 10


def test_several_radii_are_told_for_each_direction_of_its_own_length() -> None:
    """On a quadratic with H = 2 I the trace is 2 d along each direction of the sphere, whatever its coefficient."""
    weights = {"w": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)}
    method = Method(Richardson(4), Sphere(), SGD(), lr="auto", mu=1e-3)
    run = zo.Run(Store(weights), method, 0)
    record = run.step(sequential(lambda: weights["w"].square().sum()))
    assert isinstance(method.measured, Measured)
    assert dict(record.meters)["trace"] == pytest.approx(6, rel=1e-4)


def test_trust_takes_a_step_back_also_where_a_group_has_weight_decay() -> None:
    w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    opt = zo.ZOOptimizer([{"params": [w], "weight_decay": 0.5}], methods.zo_sgd(lr=TrustRate(), n=4))
    assert opt.run is not None
    assert opt.run.method.slots  # it remembers x, where the vector of a step does not lead back
    plain = zo.ZOOptimizer([{"params": [w]}], methods.zo_sgd(lr=TrustRate(), n=4))
    assert plain.run is not None
    assert not plain.run.method.slots


METHODS = [
    Method(Coordinates(8), Gaussian(), SGD(), lr=1e-3), Method(Central(8), Walsh(), SGD(), lr=1e-3)
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_norms_of_slopes_are_those_of_independent_directions(method: Any) -> None:
    weights = {"w": torch.ones(8, dtype=torch.float64)}
    record = zo.Run(Store(weights), method, 0).step(sequential(lambda: weights["w"].square().sum()))
    with pytest.raises(ValueError, match="independent random ones"):
        slope_norms([record.vector])


def test_a_radius_that_is_no_number_is_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="mu is the radius of the probes and must be > 0, got auto"):
        zo.gradient(lambda x: float(x @ x), np.ones(2), mu="auto")  # type: ignore[arg-type]


# ---- several points in one forward -----------------------------------------------------------------------------------


def losses(net: Callable[[Tensor], Tensor], x: Tensor) -> Any:
    def loss(n: int) -> Tensor:
        found: Tensor = net(x.repeat(n, *[1] * (x.ndim - 1))).square().view(n, -1).mean(1)
        return found

    return loss


def noise(y: Tensor) -> Tensor:
    return y + torch.randn_like(y)


def depth(y: Tensor) -> Tensor:
    return y * (torch.rand(len(y), 1) > 0.2)


@pytest.mark.parametrize(
    "draw",
    [noise, depth, lambda y: F.alpha_dropout(y, 0.5, True), lambda y: F.dropout1d(y[None], 0.5)[0], F.gumbel_softmax],
)
def test_random_numbers_that_branches_do_not_share_are_found(draw: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 6)
    x = torch.randn(4, 6)
    store = Store(dict(layer.named_parameters()))
    queries = [Query(sign * 1e-3 * Vector(((Noise(Kind.SIGN, k), 1.0),))) for k in range(3) for sign in (1.0, -1.0)]
    expected = sequential(lambda: losses(lambda y: draw(layer(y)), x)(1).sum())(store, queries, 5)
    with pytest.warns(UserWarning, match=r"draws random numbers by other functions than F\.dropout"):
        found = batched(losses(lambda y: draw(layer(y)), x))(store, queries, 5)
    assert found == pytest.approx(expected, rel=1e-6)


def test_dropout_is_still_shared() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 6), nn.Dropout(0.3))
    x = torch.randn(4, 6)
    store = Store(dict(net.named_parameters()))
    queries = [Query(sign * 1e-2 * Vector(((Noise(Kind.SIGN, k), 1.0),))) for k in range(3) for sign in (1.0, -1.0)]
    expected = sequential(lambda: losses(net, x)(1).sum())(store, queries, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = batched(losses(net, x))(store, queries, 5)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mu", [1e-2, 1e-3])
def test_a_model_that_mixes_branches_is_found_at_any_radius(mu: float) -> None:
    torch.manual_seed(0)
    layer, norm = nn.Linear(6, 6), nn.BatchNorm1d(6, affine=False, track_running_stats=False)
    x = torch.randn(8, 6)
    store = Store(dict(layer.named_parameters()))
    queries = [Query(sign * mu * Vector(((Noise(Kind.SIGN, k), 1.0),))) for k in range(3) for sign in (1.0, -1.0)]

    def net(y: Tensor) -> Tensor:
        return norm(layer(y)).cos()

    expected = sequential(lambda: losses(net, x)(1).sum())(store, queries, 5)
    with pytest.warns(UserWarning, match="alone and .* beside others"):
        found = batched(losses(net, x))(store, queries, 5)
    assert found == pytest.approx(expected, rel=1e-6)


# ---- stages that are begun in the middle -----------------------------------------------------------------------------


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


def test_stages_that_draw_by_any_name_are_refused() -> None:
    torch.manual_seed(0)
    stages = [nn.Linear(4, 4), Noisy(), nn.Linear(4, 1)]
    weights = {f"{k}.{name}": p for k, stage in enumerate(stages) for name, p in stage.named_parameters()}
    oracle = reusing(stages, torch.randn(3, 4), lambda y: y.square().mean())
    with pytest.raises(ValueError, match="a stage or the loss draws random numbers"):
        oracle(Store(weights), [Query()], 3)


# ---- derivatives inside of a loss ------------------------------------------------------------------------------------


DERIVED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "jacrev": lambda net, x: torch.func.vmap(torch.func.jacrev(net))(x),
    "jacfwd": lambda net, x: torch.func.vmap(torch.func.jacfwd(net))(x),
    "hessian": lambda net, x: torch.func.vmap(torch.func.hessian(net))(x),
    "jvp": lambda net, x: torch.func.jvp(net, (x,), (torch.ones_like(x),))[1],
    "grad": lambda net, x: torch.func.vmap(torch.func.grad(lambda row: net(row).sum()))(x),
}


@pytest.mark.parametrize("kind", DERIVED)
def test_a_loss_may_take_derivatives_by_torch_func(kind: str) -> None:
    """As physics-informed networks do."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x = torch.randn(3, 2, dtype=torch.float64)
    store = Store(dict(net.named_parameters()))

    def loss() -> Tensor:
        return DERIVED[kind](net, x).square().sum()

    point = Vector(((Noise(Kind.SIGN, 4), 1e-2),))
    found = sequential(loss)(store, [Query(point), Query()], 0)
    zeroth = float(loss().detach())
    with torch.no_grad():
        for leaf in store.leaves:
            store.point_(leaf.tensor.view(-1), leaf, point)
    assert found == pytest.approx([float(loss().detach()), zeroth], rel=1e-12)
    assert found[0] != found[1]
