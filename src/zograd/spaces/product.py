"""Leaves in spaces of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from torch import Tensor

from zograd.spaces.base import Extent, Space

if TYPE_CHECKING:
    from zograd.core.method import Method


@dataclass(frozen=True, slots=True)
class Product(Space):
    """The spaces of the leaves, chosen by name: `Product({"*.scale": PositiveOrthant(), "*": Euclidean()})`.

    parts: shell-style patterns of leaf names (`*`, `?`, `[seq]`) and their spaces; the first that fits counts. A leaf
    that no pattern names is an error: end with "*" for the rest. The metric is the sum of the parts'; mu and lr are in
    the units of each part.
    """

    parts: Mapping[str, Space] | tuple[tuple[str, Space], ...]
    unit: ClassVar[Extent] = "leaf"

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", self.pairs)
        if not self.parts:
            raise ValueError('a product needs parts, such as {"*": Euclidean()}')
        if any(isinstance(space, Product) for space in self.spaces):
            raise ValueError("a product in a product: write the patterns of both into one")
        _ = self.slots

    @property
    def pairs(self) -> tuple[tuple[str, Space], ...]:
        return tuple(self.parts.items()) if isinstance(self.parts, Mapping) else tuple(self.parts)

    @property
    def spaces(self) -> tuple[Space, ...]:
        return tuple(space for _, space in self.pairs)

    @property
    def flat(self) -> bool:
        return all(space.flat for space in self.spaces)

    @property
    def complete(self) -> bool:
        return all(space.complete for space in self.spaces)

    @property
    def curvature(self) -> float | str:
        kinds = {space.curvature for space in self.spaces}
        return 0.0 if kinds == {0.0} else "; ".join(str(k) for k in sorted(kinds, key=str))

    @property
    def slots(self) -> Mapping[str, float]:
        slots: dict[str, float] = {}
        for space in self.spaces:
            for name, value in space.slots.items():
                if slots.setdefault(name, value) != value or type(slots[name]) is not type(value):
                    raise ValueError(f"two parts of the product have a slot {name!r} with other initial values")
        return slots

    def of(self, name: str) -> Space:
        """The space of the leaf of that name."""
        for pattern, space in self.pairs:
            if fnmatchcase(name, pattern):
                return space
        patterns = ", ".join(repr(pattern) for pattern, _ in self.pairs)
        raise ValueError(f'no part of the product names the leaf {name!r}: it has {patterns}; add "*" for the rest')

    def misfit(self, method: Method[Any]) -> str | None:
        whys = (space.misfit(method) for space in self.spaces)
        return next((why for why in whys if why is not None), None)

    def lift_(self, z: Tensor, x: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        self._by_leaf()

    def move_(self, x: Tensor, v: Tensor) -> Tensor:
        self._by_leaf()

    def inner(self, x: Tensor, u: Tensor, v: Tensor, slots: Mapping[str, Tensor]) -> Tensor:
        self._by_leaf()

    def explain(self, x: Tensor) -> str | None:
        self._by_leaf()

    def _by_leaf(self) -> NoReturn:
        raise TypeError("a product knows leaves by name; use product.of(name)")
