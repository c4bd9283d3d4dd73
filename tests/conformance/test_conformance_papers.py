"""Law: every method of the menu walks the path of its paper, written in NumPy (`tests/reference/papers.py`)."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from small_problems import (
    CASES,
    LAWS,
    VECTORS,
    Case,
    coordinates,
    directions,
    smooth,
    smooth_sum,
    start,
    sum_oracle,
    values_oracle,
)

from tests.turns import in_turn
from zograd.core import keys
from zograd.core.query import Estimate
from zograd.core.run import Run
from zograd.laws import Gaussian, Orthogonal, Sphere, Walsh
from zograd.methods import menu, rules
from zograd.rules import Rule
from zograd.stores import Iterate, Store

STEPS = 100


def trajectory(method, seed: int, steps: int, terms: int = 0, shapes=VECTORS) -> np.ndarray:
    x = torch.from_numpy(start(method))
    a, b = (part.clone().view(shape) for part, shape in zip(x.split([12, 8]), shapes, strict=True))
    run = Run(Store({"a": a, "b": b}, space=method.space), method, seed, terms=terms)
    path = []
    for _ in range(steps):
        run.step(sum_oracle if terms else values_oracle)
        path.append(torch.cat([a.view(-1), b.view(-1)]).numpy().copy())
    return np.stack(path)


def paper_trajectory(case: Case, method, seed: int, steps: int, **changed) -> np.ndarray:
    n = case.draws or method.estimator.n
    settings = {k: v for k, v in {**case.settings, **changed}.items() if k not in case.ours}
    settings.setdefault("mu", method.mu.peak)
    if "seed" in inspect.signature(case.paper).parameters:  # for factors that directions share
        settings["seed"] = seed
    if "rng" in inspect.signature(case.paper).parameters:  # the scalar randomness of step t
        settings["rng"] = lambda t: np.random.Generator(np.random.Philox(keys.of_step(seed, t, keys.OfStep.SCALAR)))
    if "coordinates" in inspect.signature(case.paper).parameters:  # those of step t
        settings["coordinates"] = lambda t: coordinates(method, case.shapes, seed, t)
    V = directions(method, n, case.shapes, seed, steps)
    return np.stack(list(case.paper(smooth_sum if case.terms else smooth, start(method), V, **settings)))


def assert_same_path(ours: np.ndarray, theirs: np.ndarray, relative: float = 1e-10) -> None:
    gap = np.abs(ours - theirs).max(axis=1) / np.abs(theirs).max(axis=1)
    assert gap.max() < relative, f"paths part at step {int(np.argmax(gap >= relative))}: relative gap {gap.max():.2e}"


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_follows_its_paper_for_100_steps(case: Case) -> None:
    method = case.method()
    ours = trajectory(method, 7, STEPS, case.terms, case.shapes)
    assert_same_path(ours, paper_trajectory(case, method, 7, STEPS))
    assert np.abs(ours[-1] - start(method)).max() > 1e-3, "nothing moved, so nothing was compared"


@pytest.mark.parametrize("case", [c for c in CASES if c.decays], ids=lambda c: c.id)
def test_weight_decay_is_decoupled(case: Case) -> None:
    """x <- (1 - lr weight_decay) x - lr direction: the decay never passes through a momentum or a normalisation."""
    method = case.method(weight_decay=0.7)
    assert_same_path(
        trajectory(method, 3, 30, case.terms, case.shapes), paper_trajectory(case, method, 3, 30, weight_decay=0.7)
    )


# A law with slots gives directions that depend on the weights: those are held to a paper by cases of their own.
FREE_LAWS = [law for law in LAWS if not law.slots]


@pytest.mark.parametrize(
    ("case", "law"),
    in_turn([c for c in CASES if c.has_law], FREE_LAWS, (lambda c: c.id, lambda law: type(law).__name__)),
)
def test_follows_its_paper_under_every_law(case: Case, law) -> None:
    isotropic = isinstance(law, Gaussian | Sphere)
    if (case.name == "dap" and not isotropic) or (
        case.name in ("zpdvr", "frank_wolfe_vr") and isinstance(law, Orthogonal | Walsh)
    ):
        with pytest.raises(TypeError, match=r"[uU]se law="):  # the estimate would be biased
            case.method(law=law)
        return
    method = case.method(law=law)
    assert_same_path(trajectory(method, 11, 10, case.terms, case.shapes), paper_trajectory(case, method, 11, 10))


def test_the_example_for_contributors_follows_its_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of "Add a method" in CONTRIBUTING.md: an entry with a rule of its own, a reference and a case."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    entry, reference = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.setattr(menu, "MENU", dict(menu.MENU))
    page = ModuleType("contributing")
    monkeypatch.setitem(sys.modules, page.__name__, page)
    imports = {"Any": Any, "Mapping": Mapping, "Iterate": Iterate, "dataclass": dataclass}
    vars(page).update({**vars(rules), **imports, "Estimate": Estimate, "Rule": Rule, "__name__": page.__name__})
    exec(entry, vars(page))
    exec(reference, vars(page))
    (case,) = vars(page)["CASES"]
    method = case.method()
    assert method.name == case.name == "zo_nesterov"
    assert_same_path(trajectory(method, 7, STEPS), paper_trajectory(case, method, 7, STEPS))


def test_the_schedules_of_lr_and_mu_are_read_at_the_step_they_belong_to() -> None:
    """zo_sgd with lr_t and mu_t equals one paper step at a time with those numbers."""
    from zograd import methods
    from zograd.core.schedules import cosine, linear

    lr, mu = cosine(1e-2, 20, warmup=3), linear(1e-2, 20, end=0.1)
    method = methods.zo_sgd(lr=lr, mu=mu)
    case = next(c for c in CASES if c.name == "zo_sgd")
    x, path = start(), []
    for t, V in enumerate(directions(method, 1, VECTORS, 5, 20)):
        (x,) = case.paper(smooth, x, [V], lr=lr(t), mu=mu(t))
        path.append(x)
    assert_same_path(trajectory(method, 5, 20), np.stack(path))
