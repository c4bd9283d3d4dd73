"""No two uses of randomness share a key, and no two kinds of basis vectors a name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import zograd
from zograd import diagnostics, estimators, laws, methods
from zograd.core import keys, vector
from zograd.core.keys import OfStep, Part, Shared
from zograd.core.query import Ask, Query, Routine
from zograd.core.run import Run
from zograd.core.vector import BASES, Basis, Noise, Vector, basis, name_of_basis
from zograd.diagnostics.problem import Problem
from zograd.noise import fold
from zograd.oracles import sequential
from zograd.stores import Store

SEED = 5
SOURCE = Path(zograd.__file__).parent

# ---- keys ------------------------------------------------------------------------------------------------------------


def test_all_keys_of_a_run_and_of_what_stands_beside_it_are_different() -> None:
    """300 steps with 20 directions, shared keys of 300 periods, and the same below the seed of each part."""

    def run(seed: int) -> list[int]:
        steps = [keys.of_step(seed, t, what) for t in range(300) for what in (None, *OfStep)]
        directions = [keys.direction(seed, t, j) for t in range(300) for j in range(20)]
        shared = [keys.shared(seed, domain, period) for domain in Shared for period in range(300)]
        return steps + directions + shared + [keys.coordinates(seed, period) for period in range(300)]

    all_of_them = [key for seed in (SEED, *(keys.seed_of(SEED, part) for part in Part)) for key in [seed, *run(seed)]]
    assert len(set(all_of_them)) == len(all_of_them) > 30_000


def test_keys_are_made_in_one_place() -> None:
    """Elsewhere `fold` only numbers the children of a key that one part alone knows."""
    below_a_key_of_their_own = {
        "laws/factors.py", "laws/coordinate.py", "laws/lowrank.py", "laws/cosine.py",  # of a direction or a shared key
        "compress/factors.py",  # of the batches of a measurement
        "estimators/coordinate.py", "core/query.py", "distributed/shared.py", "api/batches.py", "api/workers.py",
        "blockwise/nodes.py", "blockwise/values.py",  # of the evaluation of a step: by draw and forward
        "rules/moments.py",  # of the rounding of a step
        "llm/scoring/batches.py",  # NumPy's Philox, of 64-bit words: the order of examples
    }  # fmt: skip
    found = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if path.relative_to(SOURCE).parts[0] not in ("noise", "bench") and path != SOURCE / "core" / "keys.py"
        if re.search(r"\bfold\(", path.read_text(encoding="utf-8"))
    }
    assert found == below_a_key_of_their_own


def test_each_use_in_a_step_has_the_key_of_its_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out with numbers: tapes and replays rely on them."""
    seen: dict[str, object] = {}
    w = torch.zeros(64, dtype=torch.bfloat16)
    store = Store({"w": w})

    class Watched(estimators.Estimator[None]):
        evaluations = 2

        def __call__(self, ask: Ask) -> Routine[None]:
            seen["scalar"] = ask.seed
            return (yield from estimators.Central()(ask))

    run = Run(store, replace(methods.make("zo_sgd", lr=1e-3), estimator=Watched()), SEED)
    run.step(sequential(lambda: w.float().sum()))  # so that the step below is number 1
    iterate = store.iterate

    def watched(rates: object, key: object) -> object:
        made = iterate(rates, key)  # type: ignore[arg-type]
        seen["rounding"] = made.key
        return made

    def oracle(store: Store, queries: list[Query], key: int) -> list[float]:
        seen["evaluation"] = key
        seen["direction"] = queries[0].at.terms[0][0].key  # type: ignore[attr-defined]
        return [0.1 * k for k in range(len(queries))]

    monkeypatch.setattr(store, "iterate", watched)
    run.step(oracle)  # type: ignore[arg-type]
    step = fold(SEED, 1)
    assert seen == {
        "direction": fold(fold(step, 0), 0),
        "scalar": fold(step, 1),
        "rounding": fold(step, 2),
        "evaluation": fold(step, 3),
    }


class Recorded:
    """A loss on two tensors, whose oracle notes the keys of all directions that it is asked along."""

    def __init__(self) -> None:
        self.tensors = {"w": torch.zeros(6, 5, dtype=torch.float64), "b": torch.zeros(7, dtype=torch.float64)}
        self.keys: set[int] = set()
        self.inner = sequential(lambda: sum((t - 1).square().sum() for t in self.tensors.values()))

    def oracle(self, store: Store, queries: list[Query], key: int) -> list[float]:
        self.keys |= {e.key for query in queries for e, _ in query.at.terms if isinstance(e, Noise)}
        return list(self.inner(store, queries, key))

    def run(self, steps: int = 20) -> set[int]:
        """The keys of a run with several directions a step."""
        run = Run(Store(self.tensors), methods.make("zo_sgd", n=8, lr=0.0), SEED)
        for _ in range(steps):
            run.step(self.oracle)
        return self.keys


BESIDE: dict[str, Callable[[Recorded], object]] = {
    "sensitivity": lambda r: laws.sensitivity(Store(r.tensors), [r.oracle] * 3, n=8, seed=SEED),
    "trace": lambda r: diagnostics.trace(Problem(Store(r.tensors), r.oracle), n=8, seed=SEED),
    "noise floor": lambda r: diagnostics.noise_floor(Problem(Store(r.tensors), r.oracle), seed=SEED),
    "gradient cosine": lambda r: diagnostics.gradient_cosine(
        lambda: sum((t - 1).square().sum() for t in r.tensors.values()), Problem(Store(r.tensors), r.oracle), seed=SEED
    ),
}


@pytest.mark.parametrize("what", BESIDE)
def test_what_is_measured_or_chosen_beside_a_run_has_directions_of_its_own(what: str) -> None:
    beside = Recorded()
    BESIDE[what](beside)
    assert beside.keys
    assert not beside.keys & Recorded().run()


def test_densities_are_chosen_along_directions_that_no_run_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    beside = Recorded()
    monkeypatch.setattr("zograd.estimators.coordinate.sequential", lambda loss: beside.oracle)
    estimators.grasp_densities(lambda: 0.0, beside.tensors, n=8, seed=SEED)
    assert beside.keys
    assert not beside.keys & Recorded().run()


def test_scores_do_not_favour_the_weights_that_the_first_directions_agree_with() -> None:
    """f is noise: whatever the scores prefer, the first directions of a run with the same seed do not see it.

    With shared directions, sum_i s_i g_i^2 of the run's first estimate g would exceed that of other directions.
    """
    w = torch.zeros(200, dtype=torch.float64)
    rng = np.random.default_rng(0)
    noisy = lambda store, queries, key: list(rng.normal(size=len(queries)))  # noqa: E731
    ratios = []
    for seed in range(40):
        store = Store({"w": w})
        score = laws.sensitivity(store, [noisy], n=1, seed=seed).by_name["w"].double()
        v = torch.zeros(200, dtype=torch.float64)
        (query, _) = Run(store, methods.make("mezo", law=laws.Gaussian(), mu=1.0), seed).ask()
        for block in store.blocks(query.at):
            v[block.start : block.start + len(block.v[0])] = block.v[0]
        ratios.append(float((score * v.square()).sum() / score.sum()))
    assert np.mean(ratios) == pytest.approx(1.0, abs=4 * np.std(ratios) / np.sqrt(len(ratios)))


# ---- names of basis vectors ------------------------------------------------------------------------------------------


@pytest.fixture
def restored() -> object:
    before = dict(BASES)
    yield
    BASES.clear()
    BASES.update(before)


def mine(module: str, name: str = "Noise") -> type:
    """A basis vector of a user, as its module defines it."""

    @dataclass(frozen=True)
    class Mine(Basis):
        key: int

        def add_(self, *_: object) -> None:
            """Nothing: only its name counts here."""

    Mine.__module__, Mine.__name__, Mine.__qualname__ = module, name, name
    return Mine


@pytest.mark.usefixtures("restored")
def test_a_class_of_a_user_never_takes_the_place_of_one_of_zograd() -> None:
    kind = basis(mine("my_laws"))
    assert BASES["Noise"] is Noise
    assert BASES["my_laws.Noise"] is kind
    assert name_of_basis(kind) == "my_laws.Noise"
    assert name_of_basis(Noise) == "Noise"


@pytest.mark.usefixtures("restored")
def test_two_classes_of_one_name_are_refused_and_the_first_one_stays() -> None:
    with pytest.raises(
        TypeError, match=r"named 'Noise' already, zograd.core.vector.Noise.*give zograd.elsewhere.Noise"
    ):
        basis(mine("zograd.elsewhere"))
    assert BASES["Noise"] is Noise


@pytest.mark.usefixtures("restored")
def test_a_class_that_is_defined_again_replaces_itself() -> None:
    basis(mine("notebook"))
    again = basis(mine("notebook"))
    assert BASES["notebook.Noise"] is again


@pytest.mark.usefixtures("restored")
def test_both_classes_of_one_name_go_over_the_tape_as_themselves() -> None:
    from zograd.core.tape import pack_record, unpack_record

    kind = basis(mine("my_laws", "Outer"))
    ours = BASES["Outer"](1, 2, 3)
    v = Vector(((ours, 1.0), (kind(7), 2.0)))
    record = SimpleNamespace(
        step=0, refused=False, loss=0.0, evaluations=2, mu=1.0, moved=0.0, rates=(), aux=None, vector=v, writes=(),
        meters=(),
    )  # fmt: skip
    assert unpack_record(pack_record(record)).vector == v
    assert vector.BASES["Outer"].__module__.startswith("zograd.")


def test_a_step_makes_no_key_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a function of a few numbers each key costs more than the arithmetic of the step."""
    made: list[tuple[int, ...]] = []

    def counted(key: int, *data: int) -> int:
        made.append(data)
        return fold(key, *data)

    w = torch.zeros(64, dtype=torch.float64)
    run = Run(Store({"w": w}), methods.make("zo_sgd", lr=1e-3), SEED)
    keys.of_step.cache_clear()
    monkeypatch.setattr(keys, "fold", counted)
    run.tell([float(k) for k, _ in enumerate(run.ask())])
    assert run.moves == 1
    assert w.abs().sum() > 0
    assert made == [(0, OfStep.DIRECTION), (0,)]  # of the step, then of its first direction
