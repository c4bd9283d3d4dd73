"""Row 9: the cache of an agent, its budget, and biases found by order against a solver with values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize

from zograd.examples.agent_knobs import Agent, at_random, by_bandit, calibrated, log_loss
from zograd.problems.recorded import PROMPTS, answers


def test_an_answer_costs_its_tokens_once() -> None:
    recorded = answers("validation")
    agent = Agent(recorded, 10**6)
    first, second = np.arange(10), np.arange(5, 15)
    agent.try_out(3, first)
    assert agent.spent == recorded.tokens[3, :10].sum()
    assert agent.cost(3, second) == recorded.tokens[3, 10:15].sum()
    agent.try_out(3, second)
    assert agent.spent == recorded.tokens[3, :15].sum()
    assert agent.cost(4, first) == recorded.tokens[4, :10].sum()


def test_nothing_is_asked_beyond_the_budget() -> None:
    recorded = answers("validation")
    agent = Agent(recorded, 1000)
    assert agent.try_out(2, np.arange(300)) is None
    assert agent.spent == 0
    for search in (by_bandit, at_random):
        agent = Agent(recorded, 30_000)
        course = search(agent, 0)
        assert course[-1][0] == agent.spent <= 30_000
        assert all(a <= b for (a, _), (b, _) in itertools.pairwise(course))


def test_the_best_prompt_needs_answers_to_be_believed() -> None:
    recorded = answers("validation")
    agent = Agent(recorded, 10**7)
    right = recorded.right()
    lucky = int(np.flatnonzero(right[0])[0])
    agent.try_out(0, np.array([lucky]))  # one right answer of a bad prompt
    agent.try_out(29, np.arange(300))
    assert agent.best() == 29
    assert len(PROMPTS) == len(agent.known)


@pytest.mark.parametrize("prompt", [0, 14])
def test_biases_by_order_reach_those_of_a_solver(prompt: int) -> None:
    """The log loss that comparisons reach is that of L-BFGS within 0.02 nats."""
    recorded = answers("validation")
    scores, labels = recorded.scores[prompt], recorded.labels
    exact = minimize(lambda k: log_loss(scores, labels, k), np.zeros(7)).fun
    found = log_loss(scores, labels, calibrated(scores, labels, 250, 0))
    assert exact <= found < exact + 0.02
    assert found < log_loss(scores, labels, np.zeros(7)) - 0.1
