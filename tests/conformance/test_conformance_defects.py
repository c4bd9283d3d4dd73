"""Defects of published code, as laws that every method of the menu must obey.

Seen in released implementations of the field: the update moves along other directions than those that were evaluated
(LOZO when V is resampled, HiZOO with another h, ZO-Muon with the last sample's projection), equal-shaped tensors get
the same noise (evolution strategies that reseed for each tensor), a branch for Rademacher directions that is never
reached (DAP).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import digest, values_oracle
from small_problems import CASES

from zograd import methods
from zograd.core.run import Run
from zograd.core.vector import Slot, Vector

by_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)


def written(run: Run, vector: Vector) -> np.ndarray:
    """A Vector as numbers, through the store."""
    return np.concatenate([b.v[0].double().numpy().copy() for b in run.store.blocks(vector)])


def one_step(run: Run) -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """(displacement of every query of the step, the estimate as numbers, slots that the estimate names)."""
    probes, record = [], None
    while record is None:
        queries = run.ask()
        probes += [written(run, q.at) for q in queries if q.at]
        answers = values_oracle(run.store, queries, 0)
        before = {k: v.clone() for k, v in run.store.state_dict().items()}
        record = run.tell(answers)
    slots = [e.name for e, _ in record.vector.terms if isinstance(e, Slot)]
    if slots:
        return probes, np.zeros(0), slots
    # basis vectors that read the weights (masks) are written before the move
    after = {k: v.clone() for k, v in run.store.state_dict().items()}
    run.store.load_state_dict(before)
    estimate = written(run, record.vector)
    run.store.load_state_dict(after)
    return probes, estimate, slots


@by_case
def test_moves_lie_in_the_span_of_the_probes(case) -> None:
    """No part of the estimate is along a direction whose loss was not evaluated; with one direction the cosine is 1.

    Over several steps, so that resampled factors, masks and anchors come around. Estimates that add what a slot
    remembers are the remembered probes of earlier steps, and are held to their paper instead.
    """
    run = Run(case.store(case.tensors(torch.float64, (6, 5), (7,), (6, 5))), case.method(), 3)
    checked = 0
    for _ in range(7):
        probes, estimate, slots = one_step(run)
        if slots or not np.any(estimate):
            continue
        rows = np.stack(probes)
        basis = np.linalg.svd(rows, full_matrices=False)
        kept = basis[2][basis[1] > 1e-10 * basis[1].max()]
        outside = estimate - kept.T @ (kept @ estimate)
        assert np.linalg.norm(outside) <= 1e-9 * np.linalg.norm(estimate)
        if len(kept) == 1:
            cosine = abs(kept[0] @ estimate) / np.linalg.norm(estimate)
            assert cosine == pytest.approx(1.0, abs=1e-12)
        checked += 1
    remembers = {"zo_recentred", "zo_svrg", "zo_lsvrg", "zpdvr", "frank_wolfe_vr", "cbo", "dap", "zo_adamu", "fd_fista"}
    remembers |= {"cr_fm_nes", "frank_wolfe_page", "zo_halpern"}
    assert checked or case.name in remembers


@by_case
def test_no_two_tensors_share_noise(case) -> None:
    """Equal shapes, different noise: what a probe adds to one tensor is uncorrelated with what it adds to another."""
    shape = (24, 20)
    weights = {name: torch.zeros(shape, dtype=torch.float64) + 0.01 for name in ("a", "b", "c")}
    run = Run(case.store(weights), case.widened(1e9), 5)
    n = 24 * 20
    product, power = 0.0, 0.0
    for query in run.ask():
        v = written(run, query.at)
        a, b, c = v[:n], v[n : 2 * n], v[2 * n :]
        for left, right in ((a, b), (b, c), (a, c)):
            product += abs(left @ right)
            power += np.linalg.norm(left) * np.linalg.norm(right)
    assert power == 0.0 or product / power < 0.5, "probes of two tensors are parallel"


def test_the_published_noise_of_evolution_strategies_would_fail() -> None:
    """One seed for every tensor gives correlation 1 where ours is near 0."""
    generator = torch.Generator()
    published = [torch.randn(480, generator=generator.manual_seed(1)) for _ in range(2)]
    assert torch.equal(*published)
    run = Run(CASES[0].store({k: torch.zeros(480) for k in "ab"}), methods.mirrored_es(), 0)
    v = written(run, run.ask()[0].at)
    assert abs(np.corrcoef(v[:480], v[480:])[0, 1]) < 4 / np.sqrt(480)


@by_case
def test_a_refused_step_changes_nothing_a_method_remembers(case) -> None:
    """NaN anywhere in a step: weights, slots and the state of the rule stay bit-identical."""
    run = Run(case.store(case.tensors(torch.float64)), case.method(), 1)
    for _ in range(3):
        run.step(values_oracle)
    before, state = digest(run.store.state_dict()), dict(run.state)
    record = run.step(lambda store, queries, key: [float("nan")] * len(queries))
    assert record.refused
    assert digest(run.store.state_dict()) == before
    assert run.state == state
