"""Names on the menu are of one method and one law each; a law of a user's own is found by its name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from zograd import Method, estimators, laws, methods, rules
from zograd.core.vector import Vector
from zograd.laws import Draw
from zograd.methods import menu


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = dict(menu.MENU), dict(menu.LAWS)
    yield
    for registry, entries in zip((menu.MENU, menu.LAWS), before, strict=True):
        registry.clear()
        registry.update(entries)  # type: ignore[arg-type]


def register(name: str, module: str = __name__) -> Any:
    def build(lr: float = 1.0) -> Method[Any]:
        return Method(estimators.Central(), laws.Rademacher(), rules.SGD(), mu=1e-3, lr=lr, name=name)

    build.__name__, build.__module__ = name, module
    return methods.entry(source="-", extra_memory="none", formula="-")(build)


def test_two_methods_of_one_name_are_refused_and_both_are_named() -> None:
    built_in = menu.MENU["mezo"]
    with pytest.raises(
        ValueError, match=r"two methods 'mezo', in zograd\.methods.*\.py\) and in .*test_menu.*rename one"
    ):
        register("mezo")
    assert menu.MENU["mezo"] is built_in
    register("mine")
    with pytest.raises(menu.DuplicateNameError, match="two methods 'mine'"):
        register("mine")


def test_a_cell_of_a_notebook_may_be_run_again() -> None:
    register("mine", "__main__")
    again = register("mine", "__main__")
    assert menu.MENU["mine"].build is again
    with pytest.raises(menu.DuplicateNameError):
        register("zo_sgd", "__main__")


def test_a_law_is_known_by_its_name() -> None:
    @methods.register_law
    @dataclass(frozen=True)
    class Mine(laws.Law):
        fixed_norm: bool = True

        def __call__(self, draw: Draw) -> Vector:
            return laws.Rademacher()(draw)

    assert methods.make("zo_sgd", law="mine").law == Mine()
    assert methods.law_named("sphere") == laws.Sphere()
    with pytest.raises(menu.DuplicateNameError, match="two laws 'mine'"):
        methods.register_law(Mine)
    with pytest.raises(menu.DuplicateNameError, match="two laws 'sphere'"):
        methods.register_law(laws.Sphere)
    with pytest.raises(ValueError, match=r"there is no law 'other'; use one of .*, mine"):
        methods.law_named("other")


@pytest.mark.parametrize("name", ["backprop", "forward_residual", "node_perturbation", "residual"])
def test_methods_on_blocks_take_the_settings_of_adam_as_their_own(name: str) -> None:
    """The menu lists them behind the others, and they reach the rule; other names are refused."""
    shared = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "moments": "full", "weight_decay": 0.0}
    assert list(methods.describe(name)["defaults"].items())[-5:] == list(shared.items())
    build = getattr(methods, name)
    made = build(beta1=0.5, weight_decay=0.1)
    assert (made.rule.beta1, made.rule.beta2, made.weight_decay) == (0.5, 0.99, 0.1)
    with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected keyword argument 'beta3'"):
        build(beta3=0.1)


def test_a_method_on_blocks_takes_its_settings_by_place() -> None:
    assert methods.residual(1e-3, 2, 0.5) == methods.residual(lr=1e-3, exact=2, beta1=0.5)
    assert methods.backprop(1e-3, True, 0.5) == methods.backprop(lr=1e-3, recompute=True, beta1=0.5)
