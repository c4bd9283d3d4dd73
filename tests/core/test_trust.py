"""TrustRate: what it solves by default, which steps it takes back, and that a replay takes back the same ones."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest

from zograd import AskTell, Method, Run, methods, minimize
from zograd.api.variables import ArrayStore
from zograd.core.tape_records import pack_record, unpack_record
from zograd.core.vector import Slot, Vector
from zograd.estimators import Central
from zograd.laws import Rademacher
from zograd.learning_rate import AutoRate, Levels, TrustRate
from zograd.learning_rate.trust import BEFORE
from zograd.rules import SGD, Momentum, ReplayMomentum
from zograd.spaces import PositiveOrthant


def logs(x: np.ndarray) -> float:
    return float(np.sum(np.log(1 + x * x)))


def wells(x: np.ndarray) -> float:
    return float(np.sum((x * x - 1) ** 2))


def square(x: np.ndarray) -> float:
    return float(np.sum((x - 1) ** 2))


SOLVED = {
    "linear": (lambda x: float(np.sum(x)), np.zeros(5), -1e6),
    "kinks": (lambda x: float(np.abs(x - 1).sum()), np.zeros(5), 1e-3),
    "logs-1.01": (logs, np.full(5, 1.01), 1e-6),
    "logs-1.5": (logs, np.full(5, 1.5), 1e-6),
    "logs-3": (logs, np.full(5, 3.0), 1e-6),
    "wells": (wells, np.full(5, 0.57736), 1e-6),
    "steep": (lambda x: 1e3 * square(x), np.zeros(10), 10.0),
    "flat": (lambda x: 1e-6 * square(x), np.zeros(10), 1e-8),
    "wide": (lambda x: square(x / 1e6), np.zeros(10), 1e-2),
    "narrow": (lambda x: square(x / 1e-3), np.zeros(10), 1e-2),
}


@pytest.mark.parametrize("problem", SOLVED)
def test_the_default_solves_what_curvature_alone_does_not(problem: str) -> None:
    f, x0, below = SOLVED[problem]
    assert minimize(f, x0, "zo_sgd", budget=2000, seed=1).fun < below


@pytest.mark.parametrize("problem", ["linear", "kinks", "logs-3", "wide"])
def test_momentum_gets_the_radius_for_its_whole_move(problem: str) -> None:
    """A step moves lr / (1 - beta) in the end; where lr alone was judged, the radius never grew."""
    f, x0, below = SOLVED[problem]
    assert minimize(f, x0, "mezo_momentum", budget=4000, seed=1).fun < max(below, 0.1 if below > 0 else below)


def test_momentum_in_thin_coordinates_has_the_edge_of_plain_steps() -> None:
    """`lozo_m`: N <- beta N + (1 - beta) g is heavy ball at lr (1 - beta)."""
    A = np.random.default_rng(3).standard_normal((8, 6))
    for scale in (1e-3, 1.0, 1e3):
        f = lambda x, scale=scale: scale * float(np.sum((x - A) ** 2))  # noqa: E731
        assert minimize(f, np.zeros((8, 6)), "lozo_m", budget=3000).fun < 0.03 * f(np.zeros((8, 6)))


def test_the_first_step_that_went_too_far_is_taken_back_whole() -> None:
    """The loss becomes a thousand times steeper between two steps, so that the second one is far too long."""
    loop = AskTell(np.zeros(6), methods.zo_sgd(lr=TrustRate(), n=3))
    points = []
    for k in range(8):
        points.append(loop.x)
        queries = loop.ask()
        loop.tell([square(x) + (1e3 * float(np.sum(x**4)) if k >= 3 else 0.0) for x in queries])
    backs = [
        k for k, (a, b) in enumerate(zip(loop.records[:-1], loop.records[1:], strict=True)) if b.vector == -a.vector
    ]
    assert backs == [2]
    np.testing.assert_allclose(points[4], points[2], atol=1e-15)


def noise_free() -> dict[str, Method]:
    plain = methods.zo_sgd(lr=TrustRate(), n=2)
    return {
        "sgd": plain,
        "auto-mu": methods.zo_sgd(lr=TrustRate(), mu="auto", n=4),
        "decay": replace(plain, weight_decay=1e-3),
        "momentum": Method(Central(2), Rademacher(), Momentum(0.5), lr=TrustRate()),
        "replayed": Method(Central(2), Rademacher(), ReplayMomentum(0.5), lr=TrustRate()),
        "orthant": replace(plain, space=PositiveOrthant()),
    }


def bumpy(x: np.ndarray, step: int) -> float:
    """Nothing beyond |x| = 3, so that points fail; and ten times as much now and then, so that steps are taken back."""
    value = float(np.sum(1e2 * (x - 1) ** 4 + np.abs(x - 1)))
    return math.inf if np.abs(x).max() > 3 else value * (10 if step % 15 == 9 else 1)


def answer(run: Run, queries: list) -> list[float]:
    return [bumpy(run.store.point(q.at), run.step_number) for q in queries]


@pytest.mark.parametrize("name", noise_free())
def test_a_replay_takes_the_same_steps_back(name: str) -> None:
    """Weights, slots and the state of the controllers are equal bit for bit, from records as the tape keeps them."""
    method, x0 = noise_free()[name], np.array([0.1, 2.8, 0.7, 2.95])
    run = Run(ArrayStore(x0, method.space), method, 5)
    tape = [run.step(lambda store, queries, key: answer(run, queries)) for _ in range(60)]
    again = Run(ArrayStore(x0, method.space), method, 5)
    again.replay([unpack_record(pack_record(record)) for record in tape])
    assert again.store.digest() == run.store.digest()
    assert again.control == run.control
    assert (again.state_dict()["state"], again.moves) == (run.state_dict()["state"], run.moves)
    back = [r for r in tape if any(slot == "x" for slot, _ in r.writes)]
    assert bool(back) == (BEFORE in method.slots) == (name not in ("sgd", "auto-mu"))


@pytest.mark.parametrize("name", noise_free())
def test_a_run_goes_on_from_the_middle_of_a_step(name: str) -> None:
    method, x0 = noise_free()[name], np.array([0.1, 2.8, 0.7, 2.95])
    loops = [AskTell(x0, method, seed=1) for _ in range(3)]
    for k in range(30):
        for i, loop in enumerate(loops):
            queries = loop.ask()
            if k == 17 and i == 1:
                loops[1] = loop = pickle.loads(pickle.dumps(loop))
            if k == 17 and i == 2:
                state = loop.state_dict()
                loops[2] = loop = AskTell(x0, method, seed=9)
                loop.load_state_dict(state)
                loop.ask()
            loop.tell([bumpy(x, loop.run.step_number) for x in queries])
    assert loops[0].x.tobytes() == loops[1].x.tobytes() == loops[2].x.tobytes()


@pytest.mark.parametrize("name", ["momentum", "orthant", "decay"])
def test_a_slot_brings_x_back_bit_for_bit(name: str) -> None:
    method, x0 = noise_free()[name], np.array([0.1, 2.8, 0.7, 2.95])
    run = Run(ArrayStore(x0, method.space), method, 5)
    kept, found = run.store.digest(), 0
    for _ in range(60):
        here = run.store.digest()
        record = run.step(lambda store, queries, key: answer(run, queries))
        writes = [slot for slot, _ in record.writes]
        kept = here if BEFORE in writes else kept
        if "x" in writes:
            found += 1
            assert run.store.digest() == kept
            assert not run.state
            assert not any(leaf.slots["momentum"].any() for leaf in run.store.leaves if "momentum" in leaf.slots)
    assert found >= 2


def test_zero_keeps_its_sign_in_a_slot() -> None:
    store = ArrayStore(np.array([-0.0, 0.0, 1.0]), methods.zo_sgd().space)
    store.require({"copy": 0.0})
    before = store.digest()
    store.assign({"copy": Vector(((Slot("x"), 1.0),))})
    store.array[:] = np.nan
    store.assign({"x": Vector(((Slot("copy"), 1.0),))})
    assert store.digest() == before


def test_minibatches_that_change_between_steps_take_no_good_steps_back() -> None:
    """Equal values within a step, other levels in the next one: the scatter is found, and the loss still falls."""
    rng = np.random.default_rng(0)
    targets = 1 + rng.normal(size=(500, 30))
    full = lambda x: float(np.mean((x - targets) ** 2))  # noqa: E731
    for seed in range(3):
        batches = np.random.default_rng(seed)
        loop = AskTell(np.zeros(30), methods.zo_sgd(lr=TrustRate(), mu="auto", n=4), seed=seed)
        back = 0
        for _ in range(300):
            batch, record = targets[batches.integers(0, 500, 8)], None
            while record is None:
                record = loop.tell([float(np.mean((x - batch) ** 2)) for x in loop.ask()])
            back += bool(loop.run.control["back"])
        assert back < 30
        assert full(loop.x) - full(targets.mean(0)) < 0.1 * (full(np.zeros(30)) - full(targets.mean(0)))


def test_level_and_noise_come_from_the_points_of_the_step() -> None:
    """On a quadratic the level is f(x) + mu^2 tr H / 2; two values of f(x) show the noise, or that there is none."""
    rng = np.random.default_rng(0)
    for sd in (0.0, 0.1):
        loop = AskTell(np.zeros(7), Method(Central(4), Rademacher(), SGD(), mu=0.5, lr=TrustRate()))
        f = lambda x, sd=sd: square(x) + sd * float(rng.normal())  # noqa: E731
        for _ in range(30):
            loop.tell([f(x) for x in loop.ask()])
        meters = [dict(r.meters) for r in loop.records]
        if not sd:
            assert meters[0]["level"] == pytest.approx(7 + 0.25 * 14 / 2)
            assert meters[0]["here"] == 7
            assert [k for k, m in enumerate(meters) if "repeat2" in m] == [0, 1]
        else:
            found = [m["repeat2"] for m in meters if "repeat2" in m]
            assert len(found) > 10
            assert 0.3 * sd**2 < np.mean(found) < 3 * sd**2


def test_it_measures_what_autorate_measures() -> None:
    method = methods.zo_sgd(lr=TrustRate())
    assert isinstance(method.lr, AutoRate)
    assert method.measured == Levels(Central(1))
    assert Run(ArrayStore(np.ones(3), method.space), method).estimator == Levels(Central(1))
