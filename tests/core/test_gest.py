"""The generator of gest-api: points for a VOCS, results in any order, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from zograd import methods

pytest.importorskip("gest_api", reason="the extra gest is not installed")

from gest_api import Generator as Standard
from gest_api.vocs import VOCS

from zograd.api.gest import Generator

VARIABLES = {"a": [0.0, 10.0], "b": [-1.0, 1.0]}


def value(point: dict[str, float]) -> float:
    return (point["a"] - 7.0) ** 2 / 100 + (point["b"] + 0.5) ** 2


@pytest.mark.parametrize(("kind", "sign"), [("MINIMIZE", 1.0), ("MAXIMIZE", -1.0)])
def test_it_finds_the_best_point_from_results_in_any_order(kind: str, sign: float) -> None:
    vocs = VOCS(variables=dict(VARIABLES), objectives={"f": kind}, constants={"c": 3.0}, observables=["seen"])
    generator = Generator(vocs, methods.rank(n=8, lr=0.02, mu=0.05), seed=1)
    assert isinstance(generator, Standard)
    assert generator.returns_id
    rng, first = np.random.default_rng(0), generator.recommend()
    assert first == {"a": 5.0, "b": 0.0}
    for _ in range(60):
        points = generator.suggest(3) + generator.suggest()
        assert {frozenset(p) for p in points} == {frozenset(("a", "b", "c", "_id"))}
        assert all(0 <= p["a"] <= 10 and -1 <= p["b"] <= 1 and p["c"] == 3.0 for p in points)
        results = [{**p, "f": sign * value(p), "seen": 1.0} for p in points]
        generator.ingest([results[k] for k in rng.permutation(len(results))])
    generator.finalize()
    assert generator.loop.evaluations == 480
    assert value(generator.recommend()) < 0.05 * value(first)


def test_it_starts_at_default_values() -> None:
    variables = {"a": {"type": "ContinuousVariable", "domain": [0.0, 10.0], "default_value": 2.0}, "b": [-1.0, 1.0]}
    generator = Generator(VOCS(variables=variables, objectives={"f": "MINIMIZE"}), "rank")
    assert generator.recommend() == {"a": pytest.approx(2.0), "b": 0.0}


def test_points_and_results_that_cannot_be() -> None:
    generator = Generator(VOCS(variables=dict(VARIABLES), objectives={"f": "MINIMIZE"}), methods.rank(n=4), lease=60.0)
    with pytest.raises(ValueError, match=r"9 points were asked for, and 4 are open; .* methods\.rank\(n=9\)"):
        generator.suggest(9)
    points = generator.suggest(4)
    with pytest.raises(ValueError, match="1 points were asked for, and 0 are open"):
        generator.suggest(1)
    with pytest.raises(ValueError, match="no point with the _id 77"):
        generator.ingest([{**points[0], "f": 1.0, "_id": 77}])
    with pytest.warns(UserWarning, match="1 results have no _id"):
        generator.ingest([{"a": 1.0, "b": 0.0, "f": 2.0}])
    generator.ingest([{**p, "f": float("nan")} for p in points[:2]] + points[2:])  # failed, and without a value
    assert generator.loop.records[0].refused
    generator.ingest([{**points[0], "f": 1.0}])  # late: it does not count, and is no error
    assert generator.loop.evaluations == 4


@pytest.mark.parametrize(
    ("vocs", "says"),
    [
        ({"variables": {"a": {1, 2}}, "objectives": {"f": "MINIMIZE"}}, "variable 'a' is a DiscreteVariable"),
        ({"variables": {"a": "CONTEXTUAL"}, "objectives": {"f": "MINIMIZE"}}, "variable 'a' is a ContextualVariable"),
        ({"variables": VARIABLES, "objectives": {"f": "MINIMIZE", "g": "MINIMIZE"}}, "takes one objective"),
        ({"variables": VARIABLES, "objectives": {"f": "EXPLORE"}}, "takes one objective"),
        (
            {"variables": VARIABLES, "objectives": {"f": "MINIMIZE"}, "constraints": {"g": ["LESS_THAN", 0.0]}},
            "takes no constraints here; the VOCS has g",
        ),
    ],
)
def test_a_vocs_that_does_not_fit(vocs: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Generator(VOCS(**{**vocs, "variables": dict(vocs["variables"])}))
