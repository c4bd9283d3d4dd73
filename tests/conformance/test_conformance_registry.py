"""Nothing can be forgotten: what the package exports is exactly what the conformance tests are parametrised over."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType

import pytest
import small_problems
import torch
from small_problems import CASES, ESTIMATORS, LAWS, SPACES

import zograd
from zograd import estimators, laws, methods, rules, spaces
from zograd.core.parts import concrete
from zograd.core.run import Run
from zograd.estimators import (
    Backpropagation,
    Estimator,
    ForwardResidual,
    FromBlocks,
    NodePerturbation,
    Players,
    ResidualFeedback,
    Watching,
)
from zograd.laws import Law, NullSpace, OnLayerInputs
from zograd.learning_rate import Measured
from zograd.learning_rate.levels import Levels
from zograd.rules import Balanced, BalancedNorms, Rule
from zograd.spaces import Space
from zograd.spaces.adapters import Imported

REFERENCE = Path(small_problems.__file__).parent


def ours(kind: type) -> set[type]:
    """The concrete parts of a kind that zograd defines, in whatever file."""
    return {part for part in concrete(kind) if part.__module__.startswith("zograd.")}


def test_every_menu_entry_has_a_case_and_a_paper() -> None:
    """Those that need a model have their tests in `tests/llm/test_blockwise.py` and `tests/llm/test_inputs.py`."""
    assert {case.name for case in CASES} == set(methods.names())
    assert set(methods.names(blocks=True)) == set(methods.MENU)
    assert set(methods.MENU) - set(methods.names()) == {
        *("residual", "forward_residual", "backprop", "node_perturbation", "agzo")
    }
    for case in CASES:
        assert Path(inspect.getfile(case.paper)).parent == REFERENCE, "a paper is no code of the library"
        assert case.paper.__doc__


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_every_case_builds_the_entry_it_names(case) -> None:
    assert case.method().name == case.name


def test_every_law_is_tested() -> None:
    """What needs layers or a memory is held to its own laws: tests/llm/test_inputs.py, tests/core/test_protected.py."""
    assert {type(law) for law in LAWS} == ours(Law) - {OnLayerInputs, NullSpace}
    for kind in ours(Law):
        assert type(methods.law_named(kind.__name__.lower())) is kind


def test_every_estimator_is_tested() -> None:
    """What runs put around estimators is held to its own laws, in `tests/core/test_auto.py` and `test_trust.py`.

    What needs a model is held to autograd and to its paper, in `tests/llm` (test_blockwise.py, test_inputs.py).
    `Players` has several losses: it is held to closed forms in `tests/core/test_games.py`.
    """
    assert {type(e) for e in ESTIMATORS} == ours(Estimator) - {
        *(Measured, Levels, FromBlocks, Backpropagation, ForwardResidual, NodePerturbation, Players, ResidualFeedback),
        Watching,
    }


def test_every_space_is_tested() -> None:
    """Spaces of other libraries are held to theirs, in `tests/core/test_spaces_oracles.py`."""
    assert {type(space) for space in SPACES} == ours(Space) - {Imported}


def test_every_rule_is_reached_by_a_case() -> None:
    """So that replay, chunking, memory and state are checked for each rule.

    But for those that balance pairs of factors, and the problems of the cases have none: they are held to the same
    laws, on a store with such pairs, in `tests/core/test_balanced.py`.
    """
    assert {type(case.method().rule) for case in CASES} == ours(Rule) - {Balanced, BalancedNorms}


@pytest.mark.parametrize(
    ("package", "kind"),
    [(laws, Law), (estimators, Estimator), (rules, Rule), (spaces, Space)],
    ids=["laws", "estimators", "rules", "spaces"],
)
def test_a_package_of_parts_exports_what_it_defines(package: ModuleType, kind: type) -> None:
    """A part that only one method has may stand beside it, in `zograd.methods`."""
    here = {part.__name__ for part in ours(kind) if part.__module__.startswith(package.__name__)}
    assert here - {"Imported"} <= set(package.__all__)


@pytest.mark.parametrize("name", methods.names(blocks=True))
def test_the_menu_describes_what_it_builds(name: str) -> None:
    """formula, source and memory are there; slots and law are those of the method; the page is plain data."""
    import json

    line = methods.describe(name)
    json.dumps(line)
    assert line["formula"]
    assert line["source"]
    assert line["summary"]
    method = methods.make(name, **methods.MENU[name].example)
    assert line["slots"] == sorted(method.slots)
    assert line["law"] == type(method.law).__name__
    assert line["evaluations_per_step"] == method.evaluations


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_slots_are_the_only_memory_of_the_size_of_the_weights(case) -> None:
    """What `method.slots` declares is what the store holds, and `extra_memory` says none exactly when there is none."""
    method = case.method()
    store = case.store({"w": torch.ones(3, 4)})
    Run(store, method, 0)
    assert set(store.leaves[0].slots) == set(method.slots)
    if not method.slots:
        assert "none" in methods.describe(case.name)["extra_memory"]


def test_every_public_name_can_be_imported() -> None:
    for name in dir(zograd):
        if name not in ("hub", "llm"):
            assert getattr(zograd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = zograd.nothing


def test_dtypes_of_the_suite_are_those_of_the_store() -> None:
    from zograd.stores.leaf import SUPPORTED

    assert {dtype for dtype, _ in small_problems.DTYPES.values()} == set(SUPPORTED)
