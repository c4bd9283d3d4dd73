"""What every part of a method may declare: the common base of laws, estimators, spaces and rules."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import isabstract
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zograd.core.method import Method
    from zograd.stores import Store

    declared = property
else:

    class declared(property):  # it stands where `property` would
        """A property with a default, in whose place a subclass may have a property, a class variable or a field.

        `@dataclass` takes what a class has under the name of a field as the default of the field. So this property does
        not show on the class: `n: int` in a subclass is a field without a default.
        """

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                raise AttributeError(f"{self.fget.__name__} is declared by instances")
            return super().__get__(instance, owner)


class Part:
    """A law, an estimator, a space or a rule: immutable, usually a frozen dataclass. This is what all may declare.

    What a part does not declare has the default that stands here, or on the page of its kind: `zograd.laws.Law`,
    `zograd.estimators.Estimator`, `zograd.spaces.Space`, `zograd.rules.Rule`.
    """

    __slots__ = ()

    @declared
    def slots(self) -> Mapping[str, float]:
        """State of the size of the weights, by name, with initial values: a number, `PerRow`, `PerLeaf` or `Bits`."""
        return {}

    @declared
    def works_on_pieces(self) -> bool:
        """Whether it may see a piece of a tensor whose other pieces are in other processes.

        By default: unless it has a `prepare`, which looks at whole tensors.
        """
        return type(self).prepare is Part.prepare

    def misfit(self, method: Method[Any]) -> str | None:
        """Why this part cannot be in this method, as a sentence with the remedy; None when it can."""
        return None

    def prepare(self, store: Store) -> None:
        """Set the slots from the weights, when the store has just allocated them.

        A part without slots is prepared at every start of a run, so its `prepare` must be idempotent.
        """


def concrete(kind: Any) -> list[Any]:
    """The classes of a kind of part that can be made, of users too, in order of definition; private ones left out."""
    found = {}
    for derived in kind.__subclasses__():
        if not (isabstract(derived) or derived.__name__.startswith("_")):
            found[derived.__module__, derived.__qualname__] = derived  # @dataclass(slots=True) makes each class twice
        found |= {(k.__module__, k.__qualname__): k for k in concrete(derived)}
    return list(found.values())


def check(part: object, kind: type, name: str) -> None:
    """Raise TypeError, which says what to write, when a part is not of this kind. name: of the argument it is."""
    if isinstance(part, kind):
        return
    home = f"{kind.__module__.rpartition('.')[0]}.{kind.__name__}"
    if isinstance(part, type):
        remedy = f"got the class {part.__name__}; make an instance, {part.__name__}()"
    else:
        mine = type(part).__name__
        remedy = f"got {mine}; derive it, class {mine}({home}), so that it has defaults for what it does not declare"
    raise TypeError(f"{name} must be a {home}, {remedy}")
