"""Batches and common random numbers of `minimize`: one draw a step, for all of its evaluations."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import zograd as zo
from zograd import Method, methods, minimize
from zograd.api.batches import Draws
from zograd.estimators import Central
from zograd.estimators.wrappers import SAM
from zograd.laws import Rademacher
from zograd.rules import SGD

ROUNDS = Method(SAM(Central(1), rho=0.01), Rademacher(), SGD(), mu=1e-2, lr=1e-3)
"""A method that asks in two rounds a step."""


def watched(**settings: Any) -> tuple[list[Any], Any]:
    """(what each evaluation drew, the result)."""
    drawn: list[Any] = []

    def f(x: Any, *batch: Any, **named: Any) -> float:
        drawn.append(batch[0] if batch else named["seed"])
        return float(np.sum((x - 1) ** 2))

    return drawn, minimize(f, np.zeros(4), **settings)


def by_step(drawn: list[Any], result: Any) -> list[Any]:
    """The draw of each step, after that of x0; all evaluations of a step have one."""
    compared = (len(drawn) - sum(r.evaluations for r in result.tape)) // 2
    assert compared >= 2
    assert drawn[:compared] == drawn[-compared:]  # x0 and the result can be compared
    assert len(set(drawn[:compared])) == compared
    found, place = [drawn[0]], compared
    for record in result.tape:
        (one,) = set(drawn[place : place + record.evaluations])
        found.append(one)
        place += record.evaluations
    return found


@pytest.mark.parametrize("method", ["zo_sgd", "rank", "cma", methods.zo_sgd(lr="auto", n=3), ROUNDS], ids=str)
def test_a_step_has_one_batch_and_an_epoch_has_all(method: Any) -> None:
    drawn, result = watched(method=method, data=[10, 20, 30, 40, 50], budget=120, seed=2)
    order = by_step(drawn, result)
    assert len(order) > 6
    for start in range(0, len(order) - 5, 5):
        assert sorted(order[start : start + 5]) == [10, 20, 30, 40, 50]
    assert order[:5] != order[5:10]
    again, _ = watched(method=method, data=[10, 20, 30, 40, 50], budget=120, seed=2)
    assert again == drawn


@pytest.mark.parametrize("method", ["zo_sgd", "rank", "cma", "auto"])
def test_a_step_has_one_seed_and_every_step_another(method: str) -> None:
    drawn, result = watched(method=method, common_random=True, budget=120, seed=2)
    seeds = by_step(drawn, result)
    assert len(set(seeds)) == len(seeds) > 6
    assert all(type(s) is int and 0 <= s < 2**32 for s in seeds)
    other, _ = watched(method=method, common_random=True, budget=120, seed=3)
    assert not set(other) & set(drawn)


def test_loaders_are_drawn_once_a_step_and_begun_again() -> None:
    loader = torch.utils.data.DataLoader(torch.arange(6), batch_size=2)
    drawn: list[tuple[int, ...]] = []

    def f(x: Any, batch: Any) -> float:
        drawn.append(tuple(batch.tolist()))
        return float(np.sum((x - 1) ** 2))

    result = minimize(f, np.zeros(4), "rank", data=loader, budget=80)
    order = by_step(drawn, result)
    assert order == list(itertools.islice(itertools.cycle([(0, 1), (2, 3), (4, 5)]), len(order)))


def test_an_iterator_that_ends_ends_the_run() -> None:
    result = minimize(lambda x, b: float(np.sum((x - b) ** 2)), np.zeros(4), "rank", data=iter([1.0] * 4), budget=500)
    assert result.nit == 3
    assert result.message.startswith("data ended after 4 batches")
    assert np.isfinite(result.fun)


def test_auto_knows_that_values_of_two_steps_are_no_pair() -> None:
    """Values at x0 repeat, within their batch; L-BFGS would take the change of the batch for the shape of f."""
    rng = np.random.default_rng(0)
    batches = list(rng.standard_normal((50, 8, 4)))

    def f(x: Any, rows: Any) -> float:
        return float(np.mean((rows @ (x - 1)) ** 2))

    result = minimize(f, np.zeros(4), data=batches, budget=1500)
    assert "L-BFGS" not in result.strategy
    assert np.isnan(result.noise)
    assert np.abs(result.x - 1).max() < 0.3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"data": []}, "data is empty"),
        ({"data": iter([])}, "data gave no batch"),
        ({"data": 3}, "data is a int; pass a sequence of batches"),
        ({"data": {"a": 1}}, "data is a dict; pass a sequence of batches"),
        ({"data": [1], "terms": 3}, "terms and data are two ways"),
    ],
)
def test_other_data_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        minimize(lambda x, b: 0.0, np.zeros(3), **given)


def test_seeds_differ_between_draws() -> None:
    draws = Draws(None, True, 7)
    seeds = [draws.at(k)[1]["seed"] for k in range(20_000)]
    assert len(set(seeds)) == 20_000
    assert abs(np.mean(seeds) / 2**32 - 0.5) < 0.02


# ---- the warning -----------------------------------------------------------------------------------------------------


def noisy(x: Any, *rest: Any, **named: Any) -> float:
    return float(np.sum((x - 1) ** 2) + 0.1 * np.random.standard_normal())  # noqa: NPY002


def test_two_point_methods_warn_where_values_at_x0_differ() -> None:
    with pytest.warns(UserWarning, match=r"f\(x0\) gave .* pass data= .* pass common_random=True") as caught:
        minimize(noisy, np.zeros(3), "zo_sgd", budget=60)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"f\(x0\) gave"):
        minimize(noisy, np.zeros(1500), budget=60)


def test_nothing_else_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minimize(noisy, np.zeros(3), "cma", budget=60)
        minimize(noisy, np.zeros(3), "rank", budget=60)
        minimize(noisy, np.zeros(3), budget=60)
        minimize(noisy, np.zeros(3), "zo_sgd", data=[1, 2], budget=60)
        minimize(noisy, np.zeros(3), "zo_sgd", common_random=True, budget=60)
        minimize(lambda x: float(np.sum(x)) + 1e-15 * np.random.rand(), np.ones(3), "zo_sgd", budget=60)  # noqa: NPY002


# ---- the verdict, and the rate ---------------------------------------------------------------------------------------


def apart(x: Any, b: Any) -> float:
    """Each batch pulls to a point of its own: the mean has its minimum at their mean."""
    return float(np.sum((x - b) ** 2))


@pytest.mark.parametrize("batches", [[0.9, 1.1], [0.5, 1.5], [1.5, 0.5]])
@pytest.mark.parametrize("seed", range(3))
def test_two_batches_do_not_freeze_the_rate(batches: list[float], seed: int) -> None:
    """By chance the second batch came again after a step back; then the rate fell to 1e-86, with success."""
    result = minimize(apart, np.zeros(3), "zo_sgd", data=batches, budget=3000, seed=seed)
    assert result.success
    assert np.abs(result.x - 1).max() < 0.15
    assert result.fun == pytest.approx(np.mean([apart(result.x, b) for b in batches]))


def test_the_verdict_is_that_of_several_batches() -> None:
    """One batch of 50 lay at x0: the loss of all fell from 5.9 to 3.2, and the message was that f rose."""
    data = [np.random.default_rng(i).standard_normal(3) + 1 for i in range(50)]
    result = minimize(apart, np.zeros(3), "zo_sgd", data=data, budget=4000)
    assert result.success, result.message
    assert np.mean([apart(result.x, b) for b in data]) < 3.4


def test_what_rises_on_the_other_batches_is_no_success() -> None:
    """30 variables, 100 batches of two rows: the first batch alone fell, and that was called a success."""
    rng = np.random.default_rng(1)
    a = rng.standard_normal((200, 30))
    y = a @ np.ones(30) + 0.5 * rng.standard_normal(200)
    batches = np.array_split(rng.permutation(200), 100)

    def f(x: Any, rows: Any = slice(None)) -> float:
        return float(0.5 * np.mean((a[rows] @ x - y[rows]) ** 2))

    for seed in range(4):
        result = minimize(f, np.zeros(30), "cma", data=batches, budget=3000, seed=seed)
        assert not (result.success and f(result.x) > f(np.zeros(30)))


def test_auto_takes_two_points_for_batches_of_many_variables() -> None:
    rng = np.random.default_rng(2)
    a = rng.standard_normal((400, 30))
    batches = np.array_split(rng.permutation(400), 20)
    f = lambda x, rows: float(np.mean((a[rows] @ (x - 1)) ** 2))  # noqa: E731
    result = minimize(f, np.zeros(30), data=batches, budget=2000)
    assert (result.strategy, result.success) == ("zo_sgd", True)
    assert "batch" in result.reason
    assert np.abs(result.x - 1).max() < 0.1


def test_the_verdict_with_a_penalty_is_on_the_sum() -> None:
    """In 30 variables, from the minimum of f + r: f alone is lower elsewhere, and the sum is not."""
    r = zo.sets.L1(2.0)
    result = minimize(apart, np.full(30, 1.0), data=[0.5, 1.5], penalty=r, budget=3000)
    values = [np.mean([apart(x, b) for b in (0.5, 1.5)]) + 2 * np.abs(x).sum() for x in (np.full(30, 1.0), result.x)]
    assert result.fun == pytest.approx(values[1])
    assert values[1] < values[0]
    assert result.success, result.message


def test_batches_of_a_sequence_are_read_one_at_a_time() -> None:
    class Watched(list[Any]):
        """A sequence that loads its batches, and says how often."""

        loads = 0

        def __getitem__(self, k: Any) -> Any:
            self.loads += 1
            return super().__getitem__(k)

    data = Watched(np.linspace(0.5, 1.5, 50).tolist())
    result = minimize(apart, np.zeros(12), data=data, budget=2000)
    compared = min(32, 2000 // 40)
    assert data.loads == 2 * compared + result.nit
