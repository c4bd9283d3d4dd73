"""What the parts of a step tell each other: values, though nothing watches their fields."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest

from zograd.core.query import Estimate, Query
from zograd.core.record import Record
from zograd.core.vector import Slot, Vector
from zograd.stores import Rate

V = Vector(((Slot("g"), 0.5),))


@pytest.mark.parametrize(
    ("made", "other"),
    [
        (Query(V), {"inputs": True}),
        (Record(3, V, 0.5, (Rate(0.1),), None, losses=(0.25, 0.75)), {"loss": 0.25}),
        (Estimate(V, 0.5, (0.25, 0.75), None), {"vector": Vector()}),
    ],
    ids=lambda x: type(x).__name__,
)
def test_messages_are_values(made: Query | Record | Estimate[None], other: dict[str, object]) -> None:
    again = copy.deepcopy(made)
    assert again == made
    assert pickle.loads(pickle.dumps(made)) == made
    changed = replace(made, **other)  # type: ignore[type-var]
    assert changed != made
    assert replace(changed, **{name: getattr(made, name) for name in other}) == made  # type: ignore[type-var]
    if not isinstance(made, Estimate):  # its dicts have no hash
        assert len({made, again, changed}) == 2
