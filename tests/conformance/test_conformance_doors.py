"""Laws of the doors: one method and one seed give one trajectory, whoever asks; a run may stop and go on anywhere."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from small_problems import CASES, DTYPES, LAWS, dense, digest, loss_of, records_of, smooth, start, tensors

from tests.turns import in_turn
from zograd import AskTell, ZOOptimizer, methods, minimize
from zograd.core.query import Ask, Estimate, Query
from zograd.core.run import Method, Run
from zograd.core.vector import Address, Noise, Slot, Vector, combination, fill_
from zograd.estimators import Estimator
from zograd.laws import Draw
from zograd.noise import Kind
from zograd.oracles import sequential
from zograd.rules import SGD
from zograd.stores import Store

STEPS = 15
by_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
vanishing = pytest.mark.filterwarnings("ignore:this step changed")


# ---- four doors, one trajectory --------------------------------------------------------------------------------------


def by_asktell(method, seed: int) -> np.ndarray:
    loop, path = AskTell(start(method), method, seed=seed), []
    for _ in range(STEPS):
        while loop.tell([smooth(x) for x in loop.ask()]) is None:
            pass
        path.append(loop.x)
    return np.stack(path)


def by_optimizer(method, seed: int) -> np.ndarray:
    p = torch.nn.Parameter(torch.from_numpy(start(method)))
    opt, path = ZOOptimizer([p], method, seed=seed), []
    for _ in range(STEPS):
        opt.step(lambda: smooth(p.detach().numpy()))
        path.append(p.detach().numpy().copy())
    return np.stack(path)


def by_run(method, seed: int) -> np.ndarray:
    x = torch.from_numpy(start(method))
    run, path = Run(Store({"x": x}, space=method.space), method, seed), []
    for _ in range(STEPS):
        run.step(sequential(lambda: smooth(x.numpy())))
        path.append(x.numpy().copy())
    return np.stack(path)


def by_minimize(method, seed: int) -> np.ndarray:
    """The iterates of `minimize`, each as the result of a run with that many steps."""
    path = []
    for k in (1, 2, STEPS):
        budget = (k + 1) * method.evaluations + 3  # steps may cost less than that; 2 values at x0, 1 at the end
        stop = lambda r, k=k: r.step + 1 == k  # noqa: E731
        path.append(minimize(smooth, start(method), method, seed=seed, budget=budget, callback=stop).x)
    return np.stack(path)


@by_case
def test_every_door_gives_the_same_bits(case) -> None:
    method = case.method()
    path = by_run(method, 5)
    np.testing.assert_array_equal(by_asktell(method, 5), path)
    np.testing.assert_array_equal(by_optimizer(method, 5), path)
    np.testing.assert_array_equal(by_minimize(method, 5), path[[0, 1, STEPS - 1]])
    assert not np.array_equal(by_run(method, 6), path)


@by_case
def test_the_same_points_until_they_are_told(case) -> None:
    loop = AskTell(start(case.method()), case.method(), seed=1)
    first, second = loop.ask(), loop.ask()
    assert 1 <= len(first) <= case.method().evaluations  # fewer where a step asks several times
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
        a[:] = np.nan  # the arrays are the caller's
    np.testing.assert_array_equal(loop.x, start(case.method()))
    np.testing.assert_array_equal(loop.ask()[0], second[0])


# ---- stop and go on --------------------------------------------------------------------------------------------------


@vanishing
@pytest.mark.parametrize(
    ("case", "kind"),
    in_turn(CASES, ("float32", "bfloat16-split"), (lambda c: c.id, str), slow=("float64", "bfloat16", "float16-split")),
)
def test_a_run_goes_on_from_its_state_at_any_step(case, kind: str) -> None:
    """state_dict of the run and of the store, pickled, at a step drawn from the case's name."""
    dtype, rounding = DTYPES[kind]
    stop = 1 + sum(map(ord, case.id + kind)) % (STEPS - 2)
    weights, others = case.tensors(dtype), case.tensors(dtype, seed=99)
    run = Run(case.store(weights, rounding), case.method(), 4)
    records_of(run, sequential(loss_of(weights)), stop)
    saved = pickle.dumps((run.state_dict(), run.store.state_dict()))
    later = records_of(run, sequential(loss_of(weights)), STEPS - stop)

    again = Run(case.store(others, rounding), case.method(), 0)
    state, tensors_then = pickle.loads(saved)
    again.store.load_state_dict(tensors_then)
    again.load_state_dict(state)
    assert records_of(again, sequential(loss_of(others)), STEPS - stop) == later
    assert digest(again.store.state_dict()) == digest(run.store.state_dict())
    assert again.state_dict() == run.state_dict()


@by_case
@pytest.mark.parametrize("asked", [False, True], ids=["between-steps", "between-ask-and-tell"])
def test_asktell_goes_on_elsewhere(case, asked: bool) -> None:
    loop = AskTell(start(case.method()), case.method(), seed=2)
    for _ in range(4):
        loop.tell([smooth(x) for x in loop.ask()])
    if asked:
        pending = loop.ask()
    other = AskTell(np.full(20, 0.05), case.method(), seed=77)
    other.load_state_dict(pickle.loads(pickle.dumps(loop.state_dict())))
    np.testing.assert_array_equal(other.x, loop.x)
    if asked:
        np.testing.assert_array_equal(np.stack(other.ask()), np.stack(pending))
    for _ in range(4):
        for side in (loop, other):
            side.tell([smooth(x) for x in side.ask()])
    np.testing.assert_array_equal(other.x, loop.x)
    assert other.evaluations == loop.evaluations


@by_case
def test_a_saved_state_is_a_copy(case) -> None:
    """Steps taken afterwards do not reach into it."""
    loop = AskTell(start(case.method()), case.method(), seed=2)
    loop.tell([smooth(x) for x in loop.ask()])
    saved = loop.state_dict()
    before = pickle.dumps(saved)
    loop.tell([smooth(x) for x in loop.ask()])
    assert pickle.dumps(saved) == before


def test_the_count_of_refused_steps_is_part_of_the_state() -> None:
    """A run that gives up after k failures in a row gives up at the same step when it was interrupted in between."""
    loop = AskTell(start(), seed=2)
    for _ in range(3):
        loop.tell([float("nan") for _ in loop.ask()])
    other = AskTell(start(), seed=2)
    other.load_state_dict(loop.state_dict())
    assert other.run.refused_in_a_row == loop.run.refused_in_a_row == 3


@dataclass(frozen=True)
class TwoStage(Estimator):
    """Asks twice: a direction, then its better half. Not on the menu; the protocol allows any number of rounds."""

    evaluations: int = 3

    def __call__(self, ask: Ask) -> Generator[Sequence[Query], Sequence[float], Estimate[None]]:
        v = ask.draw(0)
        plus, minus = yield [Query(ask.mu * v), Query(-ask.mu * v)]
        side = 1.0 if plus < minus else -1.0
        (third,) = yield [Query(2 * side * ask.mu * v)]
        slope = (plus - minus) / (2 * ask.mu) + ask.rng.normal() * 1e-3
        return Estimate(slope * v, third, [plus, minus, third], None)


def test_a_method_that_asks_twice_can_stop_between_its_questions() -> None:
    """The answers given so far are part of the state, and the scalar randomness is drawn again alike."""
    method = Method(TwoStage(), LAWS[0], SGD(), mu=1e-2, lr=1e-2)
    loop = AskTell(start(), method, seed=2)
    assert loop.tell([smooth(x) for x in loop.ask()]) is None
    other = AskTell(np.zeros(20), method, seed=9)
    other.load_state_dict(copy.deepcopy(loop.state_dict()))
    np.testing.assert_array_equal(np.stack(other.ask()), np.stack(loop.ask()))
    for side in (loop, other):
        record = side.tell([smooth(x) for x in side.ask()])
        assert record is not None
        assert record.evaluations == 3
    np.testing.assert_array_equal(other.x, loop.x)


def test_a_step_that_fails_in_its_second_round_is_forgotten_whole() -> None:
    """The answers of the first round go too: the step begins anew, as from a state without it."""
    x = torch.from_numpy(start())
    run = Run(Store({"x": x}), Method(TwoStage(), LAWS[0], SGD(), mu=1e-2, lr=1e-2), 2)
    before = run.state_dict()
    rounds = []

    def failing(store: Store, queries: Sequence[Query], key: int) -> list[float]:
        rounds.append(len(queries))
        if len(rounds) == 2:
            raise RuntimeError("lost the second round")
        return [1.0] * len(queries)

    with pytest.raises(RuntimeError, match="second round"):
        run.step(failing)
    assert run.state_dict() == before
    run.step(failing)
    assert rounds == [2, 1, 2, 1]


def test_slots_are_written_before_the_move_and_from_the_old_slots() -> None:
    """The order that variance reduction needs: an anchor and its gradient belong to one point; two slots may swap."""

    @dataclass(frozen=True)
    class Swap(Estimator):
        evaluations: int = 1

        def __call__(self, ask: Ask) -> Generator[Sequence[Query], Sequence[float], Estimate[None]]:
            (f,) = yield [Query()]
            a, b, x = (Vector(((Slot(name), 1.0),)) for name in ("a", "b", "x"))
            return Estimate(a, f, [f], None, {"a": b, "b": a, "anchor": x})

    x = torch.ones(4, dtype=torch.float64)
    store = Store({"x": x})
    run = Run(store, Method(Swap(), LAWS[0], SGD(), lr=0.5), 0)
    store.require({"a": 2.0, "b": 3.0, "anchor": 0.0})
    run.step(lambda s, queries, key: [0.0])
    slots = {name: float(slot[0]) for name, slot in store.leaves[0].slots.items()}
    assert slots["anchor"] == 1.0, "the anchor is the iterate before the move"
    assert float(x[0]) == 1.0 - 0.5 * 3.0, "the direction names the slot that was just written"
    assert (slots["a"], slots["b"]) == (3.0, 2.0)


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    weights = tensors(torch.float32)
    store, before = Store(weights), digest(weights)
    state = {k: v.clone() + 1 for k, v in store.state_dict().items()}
    last = list(state)[-1]
    for broken in ({**state, "slot.more": state[last]}, {k: v for k, v in state.items() if k != last}):
        with pytest.raises(ValueError, match="is in only one of them"):
            store.load_state_dict(broken)
    for wrong in (state[last].double(), state[last].reshape(-1)):
        with pytest.raises(ValueError, match="in the saved state"):
            store.load_state_dict({**state, last: wrong})
    assert digest(weights) == before


# ---- the algebra of vectors ------------------------------------------------------------------------------------------

bases = st.one_of(
    st.builds(Noise, st.sampled_from(list(Kind)), st.integers(0, 5)), st.sampled_from([Slot("a"), Slot("b")])
)
coefficients = st.floats(-4, 4, allow_nan=False, width=32)
vectors = st.lists(st.tuples(bases, coefficients), max_size=4).map(
    lambda terms: combination([c for _, c in terms], [Vector(((e, 1.0),)) for e, _ in terms])
)
many = settings(max_examples=60, deadline=None, derandomize=True)
SLOTS = {"a": np.linspace(-1, 1, 9), "b": np.full(9, 0.5)}


def numbers(v: Vector) -> np.ndarray:
    """The elements of v, by the store's own filling."""
    slots = {name: torch.from_numpy(value.copy()) for name, value in SLOTS.items()}
    return fill_(torch.empty(9, dtype=torch.float64), v, Address(0, 0), slots).numpy()


@many
@given(vectors, vectors, coefficients)
def test_vectors_are_a_vector_space(v: Vector, w: Vector, a: float) -> None:
    """What the algebra says of names is what holds for the numbers."""
    close = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(numbers(v), dense(v, (9,), SLOTS), **close)
    np.testing.assert_allclose(numbers(v + w), numbers(v) + numbers(w), **close)
    np.testing.assert_allclose(numbers(v - w), numbers(v) - numbers(w), **close)
    np.testing.assert_allclose(numbers(a * v), a * numbers(v), **close)
    np.testing.assert_array_equal(numbers(v * a), numbers(a * v))
    np.testing.assert_array_equal(numbers(-v), -numbers(v))
    np.testing.assert_array_equal(numbers(v - v), np.zeros(9))
    np.testing.assert_array_equal(numbers(v / 2), numbers(0.5 * v))
    assert v + Vector() == v


@many
@given(st.lists(st.tuples(coefficients, vectors), max_size=4))
def test_equal_names_merge(pairs: list[tuple[float, Vector]]) -> None:
    """No basis vector occurs twice, in order of first appearance; the sum is that of the numbers."""
    v = combination([a for a, _ in pairs], [w for _, w in pairs])
    names = [e for e, _ in v.terms]
    assert names == list(dict.fromkeys(e for _, w in pairs for e, _ in w.terms))
    expected = sum((a * numbers(w) for a, w in pairs), np.zeros(9))
    np.testing.assert_allclose(numbers(v), expected, rtol=1e-12, atol=1e-11)


@many
@given(vectors, vectors)
def test_vectors_are_values(v: Vector, w: Vector) -> None:
    """Equal vectors hash alike, survive pickling, and are false only when they have no terms."""
    assert pickle.loads(pickle.dumps(v)) == v
    assert hash(v) == hash(Vector(v.terms))
    assert bool(v) == (len(v.terms) > 0)
    assert (v == w) == (v.terms == w.terms)


@many
@given(st.lists(vectors, min_size=1, max_size=3))
def test_gram_is_the_gram_matrix_of_the_numbers(vs: list[Vector]) -> None:
    store = Store({"x": torch.zeros(9, dtype=torch.float64)})
    store.require({"a": 0.0, "b": 0.0})
    for name, value in SLOTS.items():
        store.leaves[0].slots[name].copy_(torch.from_numpy(value))
    rows = np.stack([numbers(v) for v in vs])
    np.testing.assert_allclose(store.gram(vs), rows @ rows.T, rtol=1e-11, atol=1e-10)


def test_combination_needs_a_coefficient_for_each_vector() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        combination([1.0], [Vector(), Vector()])


def test_ask_measures_in_frame_coordinates() -> None:
    """norm and inner of `Ask` are those of the numbers."""
    store = Store({"x": torch.zeros(9, dtype=torch.float64)})
    draw = {j: LAWS[1](Draw(0, 0, j, ((9,),), store.gram)) for j in range(3)}
    ask = Ask(0, 9, 1e-3, draw.__getitem__, store.gram, 3)
    rows = np.stack([numbers(draw[j]) for j in range(3)])
    assert ask.norm(draw[0]) == pytest.approx(np.linalg.norm(rows[0]))
    np.testing.assert_allclose(ask.inner(draw[0], [draw[1], draw[2]]), rows[1:] @ rows[0], rtol=1e-12)


@pytest.mark.parametrize("name", methods.names())
def test_methods_are_values(name: str) -> None:
    """Frozen, equal by parts, and pickled whole."""
    needed = next(c for c in CASES if c.name == name).settings
    a, b = methods.make(name, **needed), methods.make(name, **needed)
    assert a == b
    assert pickle.loads(pickle.dumps(a)) == a
    with pytest.raises(AttributeError):
        a.lr = 1.0
