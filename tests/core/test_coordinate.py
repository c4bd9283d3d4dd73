"""Coordinate-wise estimation: it is the gradient, its choice of coordinates is fair, its features can be reused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zograd import methods
from zograd.core.query import Ask, Query
from zograd.core.run import Method, Run
from zograd.core.vector import Vector
from zograd.estimators import Coordinates, grasp_densities
from zograd.laws import Coordinate
from zograd.lens import lens as stores_lens
from zograd.oracles import sequential
from zograd.oracles.feature_reuse import reusing
from zograd.rules import SGD, Momentum
from zograd.stores import Store


def network(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.LayerNorm(6), nn.Linear(6, 3)).to(dtype)


BATCH = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(8, 5).sin()
LABELS = torch.arange(8) % 3


def loss_of(model: nn.Module, dtype: torch.dtype = torch.float64):
    return lambda: F.cross_entropy(model(BATCH.to(dtype)), LABELS)


def ask(shapes, step: int = 0, run: int = 5, mu: float = 1e-3) -> Ask:
    d = sum(int(np.prod(s)) for s in shapes)
    return Ask(step, d, mu, lambda j: Vector(), lambda v: np.zeros((0, 0)), 0, shapes=tuple(shapes), run=run)


def estimated(model: nn.Module, estimator: Coordinates, mu: float) -> dict[str, torch.Tensor]:
    """The estimate of one step, as tensors."""
    tensors = dict(model.named_parameters())
    store = Store(tensors)
    run = Run(store, Method(estimator, Coordinate(), SGD(), mu=mu, lr=0.0), 1)
    vector = run.step(sequential(loss_of(model))).vector
    out = {name: torch.zeros_like(t).view(-1) for name, t in tensors.items()}
    for e, c in vector.terms:
        out[store.leaves[e.leaf].name][e.element] += c
    return {name: t.view(tensors[name].shape) for name, t in out.items()}


@pytest.mark.parametrize(("central", "order"), [(False, 1.0), (True, 2.0)])
def test_all_coordinates_are_the_gradient_of_autograd(central: bool, order: float) -> None:
    """|g - grad f| = O(mu) one-sided and O(mu^2) central, by the slope in log-log."""
    model = network()
    exact = torch.autograd.grad(loss_of(model)(), list(model.parameters()))
    radii = np.array([1e-1, 3e-2, 1e-2])
    gaps = []
    for mu in radii:
        g = estimated(model, Coordinates(10_000, central=central), mu)
        gaps.append(float(torch.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(g.values(), exact, strict=True)))))
    assert np.polyfit(np.log(radii), np.log(gaps), 1)[0] == pytest.approx(order, abs=0.1)
    assert gaps[-1] < 0.02


def test_a_part_of_the_coordinates_is_that_part_of_the_gradient() -> None:
    model = network()
    exact = dict(
        zip(
            dict(model.named_parameters()), torch.autograd.grad(loss_of(model)(), list(model.parameters())), strict=True
        )
    )
    g = estimated(model, Coordinates(30, central=True), 1e-4)
    chosen = sum(int((t != 0).sum()) for t in g.values())
    assert chosen == 30
    for name, t in g.items():
        torch.testing.assert_close(t[t != 0], exact[name][t != 0], rtol=1e-5, atol=1e-8)


def test_weights_off_the_choice_keep_their_bits() -> None:
    """DeepZero with one choice for the whole run: what is not in S never moves, what is moves."""
    model = network(torch.float32)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    method = methods.deepzero(count=20, lr=0.1, refresh=0, weight_decay=0.0)
    run = Run(Store(dict(model.named_parameters())), method, 3)
    for _ in range(30):
        run.step(sequential(loss_of(model, torch.float32)))
    moved = sum(int((p.detach() != before[n]).sum()) for n, p in model.named_parameters())
    assert 15 <= moved <= 20
    assert run.evaluations == 30 * 21


SHAPES = ((40, 5), (30,), (10, 10))


def test_the_choice_is_made_without_repetition_and_kept_for_refresh_steps() -> None:
    estimator = Coordinates(33, refresh=4)
    choices = [estimator.chosen(ask(SHAPES, t)) for t in range(8)]
    assert all(len(set(c)) == 33 for c in choices)
    assert choices[0] == choices[3] != choices[4] == choices[7]
    assert estimator.chosen(ask(SHAPES, 0, run=6)) != choices[0], "another run chooses others"
    forever = Coordinates(33, refresh=0)
    assert forever.chosen(ask(SHAPES, 0)) == forever.chosen(ask(SHAPES, 10**6))


def test_every_coordinate_is_chosen_equally_often() -> None:
    """Inclusion probability count / d for each of 330 coordinates, within 4.5 standard errors."""
    trials, count = 4000, 33
    hits = {leaf: np.zeros(int(np.prod(s))) for leaf, s in enumerate(SHAPES)}
    for t in range(trials):
        for u in Coordinates(count).chosen(ask(SHAPES, t)):
            hits[u.leaf][u.element] += 1
    share = np.concatenate(list(hits.values())) / trials
    p = count / 330
    assert np.all(np.abs(share - p) <= 4.5 * np.sqrt(p * (1 - p) / trials))


def test_densities_share_the_count_among_the_leaves() -> None:
    """200, 30 and 100 elements with densities 1 : 0 : 4 get 200 : 0 : 400 of 60, rounded at random: 20, 0 and 40."""
    counts = []
    for t in range(300):
        units = Coordinates(61, densities=(1.0, 0.0, 4.0)).chosen(ask(SHAPES, t))
        counts.append(np.bincount([u.leaf for u in units], minlength=3))
    counts = np.array(counts)
    assert np.all(counts.sum(1) == 61)
    assert np.all(counts[:, 1] == 0)
    assert set(counts[:, 0]) == {20, 21}
    assert counts[:, 0].mean() == pytest.approx(61 / 3, abs=0.12)
    with pytest.raises(ValueError, match="densities for 2 leaves, and there are 3"):
        Coordinates(5, densities=(1.0, 2.0)).chosen(ask(SHAPES))


def test_grasp_keeps_the_layers_that_carry_the_gradient_flow() -> None:
    """f = sum_l h_l |x_l|^2 / 2 + <b_l, x_l>: score -x h^2 (..), known in closed form; the densities follow it."""
    torch.manual_seed(0)
    x = {f"w{i}": torch.randn(60, dtype=torch.float64) for i in range(3)}
    h = {"w0": 0.1, "w1": 1.0, "w2": 3.0}

    def f() -> torch.Tensor:
        return sum(0.5 * h[name] * (w**2).sum() for name, w in x.items())

    score = torch.cat([-w * h[name] ** 2 * w for name, w in x.items()])  # -x H g with H g = h^2 x
    kept = (score <= torch.topk(score, 36, largest=False).values[-1]).view(3, 60).double().mean(1)
    found = grasp_densities(f, x, 0.2, n=1200, mu=1e-3, seed=3)
    assert sum(found) * 60 == pytest.approx(36, abs=1)
    assert found == pytest.approx(kept.tolist(), abs=0.1)
    assert kept[2] > 0.45
    assert kept[0] == 0.0
    with pytest.raises(ValueError, match="does not change along any"):
        grasp_densities(lambda: sum(0.0 * w.sum() for w in x.values()), x, 0.2)


# ---- feature reuse ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tile", [8, 1 << 20])
def test_reused_features_give_the_bits_of_the_whole_forward(dtype: torch.dtype, tile: int, monkeypatch) -> None:
    monkeypatch.setattr(stores_lens, "TILE", tile)  # weights in several tiles, and in one
    model = network(dtype)
    stages = [model[:2], model[2], model[3], model[4]]
    runs = []
    for oracle in (
        reusing(stages, BATCH.to(dtype), lambda y: F.cross_entropy(y.double(), LABELS)),
        sequential(lambda: F.cross_entropy(model(BATCH.to(dtype)).double(), LABELS)),
    ):
        store = Store(dict(model.named_parameters()))
        run = Run(store, Method(Coordinates(40), Coordinate(), Momentum(), mu=0.1, lr=0.0), 2)
        runs.append([run.step(oracle) for _ in range(3)])
    assert [r.losses for r in runs[0]] == [r.losses for r in runs[1]]
    assert len({*runs[0][0].losses}) > 20


def test_reused_features_skip_the_stages_below() -> None:
    """Calls of each stage: one for x, and one for every coordinate in it or in a stage below."""
    model, calls = network(), [0, 0, 0]
    stages = [model[:2], model[2:4], model[4]]
    for k, stage in enumerate(stages):
        stage.register_forward_hook(lambda *_, k=k: calls.__setitem__(k, calls[k] + 1))
    store = Store(dict(model.named_parameters()))
    method = Method(Coordinates(40), Coordinate(), SGD(), lr=0.0)
    run = Run(store, method, 2)
    chosen = method.estimator.chosen(ask(tuple(leaf.shape for leaf in store.leaves), run=2))
    owner = [0, 0, 1, 1, 1, 1, 2, 2]
    per_stage = np.bincount([owner[u.leaf] for u in chosen], minlength=3)
    run.step(reusing(stages, BATCH, lambda y: F.cross_entropy(y, LABELS)))
    assert calls == [2 + per_stage[0], 2 + per_stage[:2].sum(), 2 + per_stage.sum()]  # x: for the features, and asked


def test_reuse_also_answers_dense_directions_and_refuses_what_it_cannot() -> None:
    model = network()
    f = loss_of(model)
    store = Store(dict(model.named_parameters()))
    queries = Run(store, methods.zo_sgd(mu=0.1), 0).ask()
    stages = [model[:2], model[2:]]
    oracle = reusing(stages, BATCH, lambda y: F.cross_entropy(y, LABELS))
    assert oracle(store, queries, 0) == sequential(f)(store, queries, 0)
    with pytest.raises(TypeError, match="terms of a finite sum"):
        oracle(store, [Query(rows=(1,))], 0)
    with pytest.raises(ValueError, match="stage 1 has Dropout in train mode"):
        reusing([model[0], nn.Sequential(nn.Dropout(0.1))], BATCH, lambda y: y.sum())
    reusing([model[0], nn.Sequential(nn.Dropout(0.1)).eval()], BATCH, lambda y: y.sum())


def test_deepzero_trains_a_small_network_from_scratch() -> None:
    """A tenth of the coordinates a step, chosen anew every 10: three linearly separable classes are learnt."""
    model = network(torch.float64, seed=3)
    x = torch.randn(60, 5, dtype=torch.float64)
    labels = (x @ torch.randn(5, 3, dtype=torch.float64)).argmax(1)
    store = Store(dict(model.named_parameters()))
    run = Run(store, methods.deepzero(count=round(store.dim / 10), lr=0.1, refresh=10), 1)
    oracle = reusing([model[:2], model[2:4], model[4]], x, lambda y: F.cross_entropy(y, labels))
    first = run.step(oracle).loss
    for _ in range(199):
        last = run.step(oracle).loss
    assert first > 0.9
    assert last < 0.15
    assert (model(x).argmax(1) == labels).double().mean() > 0.95


def test_menu_entries_have_the_papers_numbers() -> None:
    line = methods.describe("deepzero")
    assert line["required"] == ["count"]
    assert (line["defaults"]["lr"], line["defaults"]["mu"]) == (0.1, 5e-3)
    assert (line["defaults"]["beta"], line["defaults"]["weight_decay"]) == (0.9, 5e-4)
    assert methods.describe("cge")["evaluations_per_step"] == 65
