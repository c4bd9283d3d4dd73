"""Row 14: the estimates of a prompt's slope against the exact gradient, by enumeration of all answers."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

import zograd as zo
from zograd.examples import adapt_at_test_time as example


@pytest.fixture(scope="module")
def policy() -> example.Policy:
    return example.taught(0, steps=60)


ONE = torch.tensor([[[7, 8], [0, 0]]])
RIGHT = torch.tensor([[5, 1]])  # 7 + 8 = 15, lowest digit first


def expected(policy: example.Policy, d: Tensor) -> Tensor:
    """The share of right digits in expectation: sum over all answers of p(answer) times its share."""
    answers = torch.tensor(list(itertools.product(range(10), repeat=2)))
    number = len(answers)
    _, logs = policy.walk(
        ONE.expand(number, -1, -1), d.expand(number, -1), torch.zeros(number, 2), answers, torch.tensor(2)
    )
    shares = (answers == RIGHT).float().mean(1)
    return (logs.sum(1).exp() * shares).sum()


def exact(policy: example.Policy) -> np.ndarray:
    d = torch.zeros(1, example.HIDDEN, requires_grad=True)
    return torch.autograd.grad(expected(policy, d), d)[0][0].double().numpy()


def along(found: list[np.ndarray], g: np.ndarray) -> tuple[float, float]:
    """Mean and standard error of <estimate, g> / |g|^2."""
    values = np.array(found) @ g / (g @ g)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def sampled_share(d: np.ndarray, policy: example.Policy, u: Tensor, sign: float = 1.0) -> float:
    said, _ = policy.walk(ONE, torch.from_numpy(d).float()[None], u, RIGHT, torch.tensor(0))
    return sign * float((said == RIGHT).float().mean())


def test_all_answers_have_probability_one(policy: example.Policy) -> None:
    answers = torch.tensor(list(itertools.product(range(10), repeat=2)))
    _, logs = policy.walk(ONE.expand(100, -1, -1), 0.0, torch.zeros(100, 2), answers, torch.tensor(2))
    assert float(logs.sum(1).exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_differences_with_common_numbers_have_the_exact_gradient_as_their_mean(policy: example.Policy) -> None:
    """Both points of a difference take the same uniform numbers; the mean lies within 3 standard errors."""
    g, luck, found = exact(policy), torch.Generator().manual_seed(0), []
    for step in range(200):
        u = torch.rand(1, 2, generator=luck)
        estimate = zo.gradient(
            partial(sampled_share, policy=policy, u=u), np.zeros(example.HIDDEN), estimator=zo.estimators.Central(4),
            mu=0.05, seed=0, step=step,
        )  # fmt: skip
        found.append(np.asarray(estimate.value))
    mean, error = along(found, g)
    assert error < 0.4
    assert abs(mean - 1) < 3 * error


def test_reinforce_has_the_exact_gradient_as_its_mean(policy: example.Policy) -> None:
    g, luck, found = exact(policy), torch.Generator().manual_seed(1), []
    for _ in range(150):
        each, wanted = ONE.expand(64 * 8, -1, -1), RIGHT.expand(64 * 8, -1)
        slope, _ = example.reinforce(policy, each, torch.zeros(64, 64), wanted, torch.rand(64 * 8, 2, generator=luck))
        found += list(slope.double().numpy())
    mean, error = along(found, g)
    assert error < 0.05
    assert abs(mean - 1) < 3 * error


def test_ranks_lead_uphill(policy: example.Policy) -> None:
    """The mean of rank's estimate has a positive part along the exact gradient, by more than 3 standard errors."""
    g, luck, found = exact(policy), torch.Generator().manual_seed(2), []
    method = zo.methods.rank(mu=example.MU, n=example.STEP)
    for step in range(150):
        u = torch.rand(1, 2, generator=luck)
        estimate = zo.gradient(
            partial(sampled_share, policy=policy, u=u, sign=-1.0), np.zeros(example.HIDDEN),
            estimator=method.estimator, law=method.law, mu=example.MU, seed=0, step=step,
        )  # fmt: skip
        found.append(-np.asarray(estimate.value))
    mean, error = along(found, g)
    assert mean > 3 * error


def test_digits_given_are_kept_and_the_rest_is_drawn(policy: example.Policy) -> None:
    prompts, right = example.sums(50, 10, 100, 3, 4)
    a, b = (prompts[:, :, k] @ torch.tensor([1, 10, 100]) for k in (0, 1))
    assert (right @ torch.tensor([1, 10, 100])).tolist() == (a + b).tolist()
    said, logs = policy.walk(prompts, 0.0, torch.zeros(50, 3), right, torch.arange(50) % 4)
    for k in range(50):
        assert said[k, : k % 4].tolist() == right[k, : k % 4].tolist()
        assert said[k, k % 4 :].tolist() == [0] * (3 - k % 4)  # u = 0 draws the first digit
    assert (logs <= 0).all()


def test_more_samples_solve_more_and_kept_digits_most(policy: example.Policy) -> None:
    prompts, right = example.sums(20, 10, 100, 3, 4)
    best = example.best_of(policy, prompts, right, 0).float().mean(1)
    kept = example.best_of(policy, prompts, right, 0, keep=True).float().mean(1)
    assert best.shape == (example.SAMPLES // example.STEP,)
    assert best[0] < best[-1] < kept[-1]
