"""Games from evaluations: the field of a saddle, players with losses of their own, and when steps converge."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import dense

from zograd import AskTell, Method, Run, Store, ZOOptimizer, methods, oracles
from zograd.core.vector import Noise, Slot, Vector
from zograd.estimators import SAM, SVRG, Central, Coordinates, Players, Recentred, Saddle
from zograd.estimators.games import on_leaves
from zograd.laws import Orthogonal, Rademacher
from zograd.laws.coordinate import Unit
from zograd.noise import Kind
from zograd.rules import SGD, Optimistic

D = 4
Q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((D, D)))
"""The bilinear game x^T Q y has all singular values 1."""


def bilinear(p: dict[str, np.ndarray]) -> float:
    return float(p["x"] @ Q @ p["y"])


def norms(method: Method, steps: int, seed: int = 0) -> list[float]:
    loop = AskTell({"x": np.ones(D), "y": np.ones(D)}, method, seed=seed)
    found = []
    for _ in range(steps):
        loop.tell([bilinear(p) for p in loop.ask()])
        found.append(float(np.sum(loop.x["x"] ** 2) + np.sum(loop.x["y"] ** 2)))
    return found


def second_moments(lr: float, d: int) -> np.ndarray:
    """The map of (E|z|^2, E<z, u>, E|u|^2, E<M z, u>) in a step of the optimistic method with one direction.

    u is the last estimate w w^T M z of the field M z, M skew and orthogonal. E w w^T = I and |w|^2 = d.
    """
    return np.array([
        [1 + 4 * lr**2 * d, 2 * lr, lr**2, -4 * lr**2],
        [-2 * lr * d, 0, 0, lr],
        [d, 0, 0, 0],
        [1, lr, 0, 0],
    ])  # fmt: skip


def test_one_direction_diverges_on_a_bilinear_game_at_every_rate() -> None:
    """The map of second moments has a spectral radius above 1 at every rate, and runs follow it."""
    for lr in np.geomspace(1e-4, 2.0, 30):
        assert max(abs(np.linalg.eigvals(second_moments(lr, 2 * D)))) > 1.0
    lr, steps, runs = 0.05, 12, 300
    method = methods.zo_saddle(("y",), lr=lr, inner=Central(1), mu=0.5)
    measured = np.mean([norms(method, steps, seed) for seed in range(runs)], axis=0)
    state, expected = np.array([2.0 * D, 0, 0, 0]), []
    for _ in range(steps):
        state = second_moments(lr, 2 * D) @ state
        expected.append(state[0])
    assert measured == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    "method",
    [
        methods.zo_saddle(("y",), lr=0.3),
        methods.zo_saddle(("y",), lr=0.3, inner=Central(2 * D), law=Orthogonal()),
    ],
    ids=["coordinates", "orthogonal"],
)
def test_a_whole_field_converges_on_a_bilinear_game_where_descent_and_ascent_diverge(method: Method) -> None:
    """Its path is that of the optimistic step on the exact field, in NumPy."""
    ours = norms(method, 150)
    x, y, last, expected = np.ones(D), np.ones(D), (0.0, 0.0), []
    for _ in range(150):
        field = Q @ y, -Q.T @ x
        x, y = x - 0.3 * (2 * field[0] - last[0]), y - 0.3 * (2 * field[1] - last[1])
        last = field
        expected.append(x @ x + y @ y)
    assert ours == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert ours[-1] < 1e-3
    assert norms(replace(method, rule=SGD()), 60)[-1] > 100 * ours[0]


def test_one_direction_converges_where_the_game_is_strongly_convex_and_concave() -> None:
    """f = m/2 (|x|^2 - |y|^2) + x^T Q y; E|z|^2 contracts for rates below about m / (d L^2)."""

    def value(p: dict[str, np.ndarray]) -> float:
        return bilinear(p) + float(p["x"] @ p["x"] - p["y"] @ p["y"]) / 2

    for seed in range(2):
        loop = AskTell({"x": np.ones(D), "y": np.ones(D)}, methods.zo_saddle(("y",), 0.02, inner=Central(1)), seed=seed)
        for _ in range(1500):
            loop.tell([value(p) for p in loop.ask()])
        assert float(np.sum(loop.x["x"] ** 2) + np.sum(loop.x["y"] ** 2)) < 1e-6


def test_one_pair_of_evaluations_serves_both_players() -> None:
    method = methods.zo_saddle(("y",), inner=Central(1))
    loop = AskTell({"x": np.ones(D), "y": np.ones(D)}, method)
    (plus, minus) = loop.ask()
    assert np.all(plus["x"] != minus["x"])
    assert np.all(plus["y"] != minus["y"])
    loop.tell([bilinear(plus), bilinear(minus)])
    assert loop.evaluations == method.evaluations == 2


@pytest.mark.parametrize("inner", [Recentred(2), SVRG(1, every=3, full=Coordinates(9, central=True)), SAM(Central(2))])
def test_a_saddle_is_the_estimate_of_inner_with_signs(inner) -> None:
    """Also for estimators with slots: the first step of both differs by the sign on the leaf that ascends."""
    moves = []
    for estimator in (inner, Saddle(("v",), inner)):
        u, v = torch.linspace(1, 2, 3, dtype=torch.float64), torch.linspace(-1, 3, 6, dtype=torch.float64)
        before = u.clone(), v.clone()
        run = Run(Store({"u": u, "v": v}), Method(estimator, Rademacher(), SGD(), mu=1e-3, lr=1e-2), seed=4)
        run.step(oracles.sequential(lambda u=u, v=v: (u**3).sum() + (v.sin() * v.roll(1)).sum()))
        moves.append((u - before[0], v - before[1]))
    assert torch.equal(moves[1][0], moves[0][0])
    assert torch.allclose(moves[1][1], -moves[0][1], rtol=1e-12, atol=0)
    assert torch.any(moves[0][1] != 0)


def test_a_combination_on_leaves_is_its_elements_scaled() -> None:
    sizes = (3, 4)
    v = Vector(((Noise(Kind.SIGN, 5), 2.0), (Noise(Kind.NORMAL, 6), -1.0), (Slot("m"), 0.5), (Unit(1, 2), 3.0)))
    slots = {"m": np.arange(7.0)}
    scale = np.repeat([0.25, -2.0], sizes)
    scaled = on_leaves(v, (1,), -2.0, 0.25)
    assert dense(scaled, sizes, slots) == pytest.approx(scale * dense(v, sizes, slots))
    store = Store({"a": torch.zeros(3, dtype=torch.float64), "b": torch.zeros(4, dtype=torch.float64)})
    store.require({"m": 0.0})
    store.assign({"m": Vector()})
    store.leaves[0].slots["m"].copy_(torch.arange(3.0))
    store.leaves[1].slots["m"].copy_(torch.arange(3.0, 7.0))
    written = [block.v[0].clone().numpy() for block in store.blocks(scaled)]
    assert np.concatenate(written) == pytest.approx(scale * dense(v, sizes, slots))
    assert not on_leaves(Vector(((Unit(0, 1), 1.0),)), (1,), 1.0, 0.0), "what is scaled by 0 leaves no term"


# ---- players ---------------------------------------------------------------------------------------------------------


def players_run(seed: int = 0, inner=None, lr: float = 0.2):
    """Three players, f_i = |x_i|^2 / 2 + x_i . (C_i z) + b_i . x_i: the equilibrium solves a linear system."""
    rng = np.random.default_rng(3)
    sizes = (2, 3, 1)
    d = sum(sizes)
    C, b = 0.4 * rng.standard_normal((d, d)) / np.sqrt(d), rng.standard_normal(d)
    ends = np.cumsum((0, *sizes))
    for lo, hi in pairwise(ends):
        C[lo:hi, lo:hi] = 0.0
    x = [torch.ones(n, dtype=torch.float64) for n in sizes]

    def loss(i: int):
        lo, hi = ends[i], ends[i + 1]

        def value() -> torch.Tensor:
            z = torch.cat([t * 1.0 for t in x])
            own = z[lo:hi]
            return own @ own / 2 + own @ (torch.from_numpy(C[lo:hi]) @ z) + own @ torch.from_numpy(b[lo:hi])

        return value

    inner = inner or Coordinates(d, central=True)
    method = Method(Players((("p0",), ("p1",), ("p2",)), inner), Rademacher(), SGD(), mu=0.1, lr=lr)
    run = Run(Store({f"p{i}": t for i, t in enumerate(x)}), method, seed)
    equilibrium = np.linalg.solve(np.eye(d) + C, -b)
    return run, oracles.by_round(*map(loss, range(3))), x, equilibrium


def test_players_meet_at_the_equilibrium_of_the_linear_system() -> None:
    run, oracle, x, equilibrium = players_run()
    for _ in range(200):
        run.step(oracle)
    assert torch.cat(x).numpy() == pytest.approx(equilibrium, abs=1e-9)
    assert run.evaluations == 200 * 2 * (2 + 3 + 1), "each player pays for its own coordinates"


def test_one_direction_for_each_player_is_unbiased() -> None:
    """The mean move over seeds is the step along the stacked slopes, within four standard errors."""
    moves = []
    for seed in range(225):
        run, oracle, x, _ = players_run(seed, Central(1), lr=1.0)
        run.step(oracle)
        moves.append(torch.cat(x).numpy() - 1.0)
    exact, oracle, x, _ = players_run(lr=1.0)
    exact.step(oracle)
    error = np.std(moves, axis=0) / 15
    assert np.all(np.abs(np.mean(moves, axis=0) - (torch.cat(x).numpy() - 1.0)) < 4 * error + 1e-9)


def test_a_player_alone_in_one_dimension_has_no_variance() -> None:
    """Probes of a player lie on its own leaves only, so a player of one number measures its slope exactly."""
    moves = set()
    for seed in range(5):
        run, oracle, x, _ = players_run(seed, Central(1))
        run.step(oracle)
        moves.add(round(x[2].item(), 9))
    assert len(moves) == 1


def test_players_replay_and_take_optimistic_steps() -> None:
    run, oracle, x, _ = players_run(inner=Central(3), lr=0.05)
    method = replace(run.method, rule=Optimistic())
    run = Run(run.store, method, 1)
    records = [run.step(oracle) for _ in range(5)]
    again, _, y, _ = players_run()
    Run(again.store, method, 1).replay(records)
    assert all(map(torch.equal, x, y))
    assert not torch.equal(x[0], torch.ones(2, dtype=torch.float64))


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_names_that_no_tensor_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ascend names 'z', and no tensor is called so; there are x, y"):
        AskTell({"x": 1.0, "y": 1.0}, methods.zo_saddle(("z",))).ask()
    with pytest.raises(
        TypeError, match=r"ascend is 'y', and expected is a tuple of names or patterns: ascend=\('y',\)"
    ):
        methods.zo_saddle("y")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ascend is \(\), and expected are names"):
        Saddle(())
    with pytest.raises(ValueError, match="a game has at least two players"):
        Players((("x",),))
    with pytest.raises(ValueError, match="player 1 owns no tensor"):
        Run(Store({"x": torch.ones(2)}), Method(Players((("x",), ("*",))), Rademacher(), SGD()))
    with pytest.raises(TypeError, match="Players measures several losses, and the memory of Recentred is of one"):
        Method(Players((("x",), ("y",)), Recentred(1)), Rademacher(), SGD())


def test_a_discriminator_ascends_by_its_name_in_a_torch_loop() -> None:
    model = torch.nn.ModuleDict({"generator": torch.nn.Linear(1, 1), "critic": torch.nn.Linear(1, 1)}).double()
    opt = ZOOptimizer(model.named_parameters(), methods.zo_saddle(("critic.*",), lr=1e-3))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    opt.step(lambda: sum(p.sum() for p in model.parameters()))
    for name, p in model.named_parameters():
        assert float((p - before[name]).detach()) * (1 if name.startswith("critic") else -1) > 0


# ---- oracles ---------------------------------------------------------------------------------------------------------


def test_rounds_start_again_in_each_step_and_after_an_exception() -> None:
    x = torch.ones(2, dtype=torch.float64)
    asked: list[str] = []

    def first() -> float:
        asked.append("first")
        return float(x.sum())

    def second() -> float:
        asked.append("second")
        if len(asked) == 4:
            raise RuntimeError("lost")
        return float(x.sum())

    run = Run(Store({"x": x}), methods.zo_sam(lr=0.1, n=1), 0)
    oracle = oracles.by_round(first, second)
    with pytest.raises(RuntimeError, match="lost"):
        run.step(oracle)
    asked.append("again")
    run.step(oracle)
    run.step(oracle)
    after = asked[asked.index("again") + 1 :]
    assert after == ["first", "first", "second", "second"] * 2


def test_what_is_frozen_has_no_slope() -> None:
    """l(x) = sum s(x) x with s = x^2 held: the slope is x^2 and not 3 x^2."""
    x = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    run = Run(Store({"x": x}), Method(Coordinates(3, central=True), Rademacher(), SGD(), mu=1e-3, lr=1.0), 0)
    run.step(oracles.frozen(lambda held, rows: (held * x).sum(), lambda rows: x.square()))
    assert x.numpy() == pytest.approx([1 - 1, 2 - 4, -3 - 9], abs=1e-9)


def test_frozen_finds_tensors_that_torch_does_not_see() -> None:
    """A loss that reads the memory of the tensor is found, and evaluated with the weights written in place."""
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    memory = x.numpy()
    run = Run(Store({"x": x}), Method(Coordinates(2, central=True), Rademacher(), SGD(), mu=1e-3, lr=1.0), 0)
    with pytest.warns(UserWarning, match="did not read"):
        run.step(oracles.frozen(lambda held, rows: float(held @ memory), lambda rows: 3.0 * memory))
    assert x.numpy() == pytest.approx([1 - 3, 2 - 6], abs=1e-9)


def test_frozen_works_on_the_terms_of_a_finite_sum() -> None:
    """SVRG over terms: both points of a pair get the same rows, and the fixed point of the semi-gradient is found."""
    rng = np.random.default_rng(0)
    a, b = torch.from_numpy(rng.uniform(0.5, 1.5, 20)), torch.from_numpy(rng.standard_normal(20))
    x = torch.zeros(1, dtype=torch.float64)

    def held(rows):
        return 0.5 * a[list(rows) if rows is not None else slice(None)] * x

    def loss(s, rows):
        chosen = list(rows) if rows is not None else slice(None)
        return (a[chosen] * (0.5 * x * x - s * x) - b[chosen] * x).mean()

    method = Method(SVRG(1, 2, 10, Coordinates(1, central=True)), Rademacher(), SGD(), mu=0.1, lr=0.2)
    run = Run(Store({"x": x}), method, 0, terms=20)
    oracle = oracles.frozen(loss, held)
    for _ in range(400):
        run.step(oracle)
    expected = b.mean() / (a - 0.5 * a * a).mean()  # a x - a s(x) = b in the mean
    assert x.item() == pytest.approx(float(expected), rel=1e-6)


def test_pairs_around_one_centre_share_what_is_held() -> None:
    """Five coordinates, one centre: one evaluation of it. Two directions of SVRG, around x and the anchor: two."""
    x, taken = torch.zeros(5, dtype=torch.float64), list[object]()

    def held(rows):
        taken.append(rows)
        return x - 1.0

    oracle = oracles.frozen(lambda held, rows: (held * x).sum(), held)
    full = Coordinates(5, central=True)
    run = Run(Store({"x": x}), Method(full, Rademacher(), SGD(), mu=0.1, lr=0.5), 0)
    run.step(oracle)
    run.step(oracle)
    assert taken == [None, None]
    assert x.numpy() == pytest.approx(0.75, abs=1e-12)  # half of the way to 1, twice
    run = Run(Store({"x": x}), Method(SVRG(2, 3, 10, full), Rademacher(), SGD(), mu=0.1, lr=0.5), 0, terms=6)
    run.step(oracle)
    taken.clear()
    run.step(oracle)
    assert len(taken) == 2


def test_points_that_are_no_pairs_are_refused() -> None:
    x = torch.ones(2)
    run = Run(Store({"x": x}), methods.fzoo(n=4), 0)
    with pytest.raises(ValueError, match=r"frozen\(\) holds a part of the loss over pairs .* and 5 points were asked"):
        run.step(oracles.frozen(lambda held, rows: x.sum(), lambda rows: None))
    with pytest.raises(ValueError, match=r"by_round\(\) has no losses"):
        oracles.by_round()
    assert torch.equal(x, torch.ones(2))
