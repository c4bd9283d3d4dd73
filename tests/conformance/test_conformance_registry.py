"""Nothing can be forgotten: what the package exports is exactly what the conformance tests are parametrised over."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest
import small_problems
import torch
from small_problems import CASES, ESTIMATORS, LAWS, SPACES

import zograd
from zograd import estimators, laws, methods, rules, spaces
from zograd.core.run import Run


def parts_in(module: ModuleType) -> set[str]:
    """Names of the concrete parts that a module or package defines: its public frozen dataclasses."""
    return {
        name
        for name, thing in vars(module).items()
        if inspect.isclass(thing)
        and not name.startswith("_")
        and hasattr(thing, "__dataclass_fields__")
        and thing.__module__.startswith(module.__name__)
        and thing.__name__ != "Draw"
    }


def test_every_menu_entry_has_a_case_and_a_paper() -> None:
    assert {case.name for case in CASES} == set(methods.MENU) == set(methods.names())
    for case in CASES:
        assert case.paper.__module__.startswith("papers")
        assert case.paper.__doc__


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_every_case_builds_the_entry_it_names(case) -> None:
    assert case.method().name == case.name


def test_every_law_is_tested() -> None:
    defined = {name for name in parts_in(laws) if "fixed_norm" in dir(getattr(laws, name))}  # `Unit` is a basis vector
    assert {type(law).__name__ for law in LAWS} == defined
    for name in defined:
        assert type(methods.law_named(name.lower())).__name__ == name


def test_every_estimator_is_tested() -> None:
    exported = {n for n in estimators.__all__ if "__call__" in vars(getattr(estimators, n))}
    assert {type(e).__name__ for e in ESTIMATORS} == exported


def test_every_space_is_tested() -> None:
    assert {type(s).__name__ for s in SPACES} == {n for n in parts_in(spaces) if hasattr(getattr(spaces, n), "move_")}


def test_every_rule_is_reached_by_a_case() -> None:
    """So that replay, chunking, memory and state are checked for each rule.

    But for rules that need pairs of factors (`pairs`), which the problems of the cases do not have: they are held to
    the same laws, on a store with such pairs, in `tests/core/test_balanced.py`.
    """
    exported = {n for n in rules.__all__ if n != "Rule" and not hasattr(getattr(rules, n), "pairs")}
    assert {type(case.method().rule).__name__ for case in CASES} == exported


@pytest.mark.parametrize("name", methods.names())
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
        if name not in ("faces", "hub", "llm"):
            assert getattr(zograd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = zograd.nothing


def test_dtypes_of_the_suite_are_those_of_the_store() -> None:
    from zograd.stores.leaf import SUPPORTED

    assert {dtype for dtype, _ in small_problems.DTYPES.values()} == set(SUPPORTED)
