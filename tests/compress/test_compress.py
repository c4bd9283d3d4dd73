"""Scores, masks and factors of linear layers, against NumPy, brute force and autograd."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from zograd import compress
from zograd.core.run import Method, Run
from zograd.core.vector import Vector
from zograd.estimators import Central
from zograd.laws import Scores, TopScores
from zograd.laws.rows import RowSigns
from zograd.oracles import sequential
from zograd.rules import SGD
from zograd.stores import Store


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()


def inputs(n: int, seed: int = 1, width: int = 6) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_norms_are_those_of_all_rows_that_enter_a_layer() -> None:
    model = net()
    layers = compress.linear_layers(model)
    batches = [inputs(4, 1), inputs(7, 2).view(7, 1, 6)]
    norms = compress.activation_norms(layers, [lambda x=x: model(x) for x in batches])
    rows = np.concatenate([x.reshape(-1, 6).numpy() for x in batches])
    hidden = np.tanh(rows @ model[0].weight.detach().numpy().T + model[0].bias.detach().numpy())
    np.testing.assert_allclose(norms["0"], np.sqrt((rows**2).sum(0)), rtol=1e-12)
    np.testing.assert_allclose(norms["2"], np.sqrt((hidden**2).sum(0)), rtol=1e-12)
    assert not model[0]._forward_pre_hooks, "no hook stays"


def test_positions_without_a_token_are_left_out() -> None:
    model, x = net(), inputs(6).view(2, 3, 6)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    for given in (x, x.view(-1, 6)):  # flat as OPT gives them to some layers
        norms = compress.activation_norms({"0": model[0]}, [lambda given=given: model(given)], lambda: mask)
        np.testing.assert_allclose(norms["0"], x[mask].norm(dim=0), rtol=1e-12)


def test_scores_are_their_formulas() -> None:
    rng = np.random.default_rng(0)
    w, a, b = rng.normal(size=(3, 5)), rng.uniform(0.5, 2.0, 5), rng.uniform(0.5, 2.0, 5)
    tensors = [torch.from_numpy(x) for x in (w, a, b)]
    np.testing.assert_allclose(compress.wanda(*tensors[:2]), np.abs(w) * a)
    ga, tb = a / a.mean(), b / b.mean()
    alike = np.argsort(np.abs(ga - tb))[:2]
    fused = np.maximum(ga, tb)
    fused[alike] = ((ga + tb) / 2)[alike]
    np.testing.assert_allclose(compress.task_aware(*tensors, shared=0.4), np.abs(w) * fused)


def test_pruning_takes_the_least_of_each_row_exactly() -> None:
    model = net()
    layers = compress.linear_layers(model)
    before = {name: layer.weight.detach().numpy().copy() for name, layer in layers.items()}
    scores = {name: compress.magnitude(layer.weight) for name, layer in layers.items()}
    masks = compress.prune_(layers, scores, 0.5)
    for name, w in before.items():
        k = w.shape[1] // 2
        kept = np.abs(w) > np.sort(np.abs(w), axis=1)[:, k - 1 : k]
        np.testing.assert_array_equal(masks[f"{name}.weight"], kept)
        np.testing.assert_array_equal(layers[name].weight.detach(), w * kept)
    ties = {"0": torch.ones(8, 6, dtype=torch.float64)}
    assert (compress.prune_({"0": model[0]}, ties, 0.34)["0.weight"].sum(1) == 4).all()


def test_norms_decide_which_of_two_equal_weights_is_worth_more() -> None:
    """Outputs on the data change less when the column with small inputs goes: against brute force over all masks."""
    x = inputs(200) * torch.tensor([3.0, 1.0, 0.1, 2.0, 0.5, 0.01], dtype=torch.float64)
    layer = nn.Linear(6, 1, bias=False).double()
    nn.init.ones_(layer.weight)
    norms = compress.activation_norms({"a": layer}, [lambda: layer(x)])["a"]
    wanted = x @ layer.weight.detach().T
    (mask,) = compress.prune_({"a": layer}, {"a": compress.wanda(layer.weight, norms)}, 0.5).values()
    subsets = [torch.tensor(bits, dtype=torch.float64) for bits in np.ndindex(*(2,) * 6) if sum(bits) == 3]
    errors = [float((x @ s[:, None] - wanted).norm()) for s in subsets]
    assert float((layer(x) - wanted).detach().norm()) == pytest.approx(min(errors))
    assert mask.tolist() == [[True, True, False, True, False, False]]


def test_a_mask_goes_on_training_what_is_left() -> None:
    """`TopScores(1.0, Scores(masks))` moves the kept weights and no other one."""
    model, x = net(), inputs(20)
    layers = compress.linear_layers(model, "2")
    masks = compress.prune_(layers, {"2": compress.magnitude(model[2].weight)}, 0.5)
    weights = {"2.weight": model[2].weight.detach()}
    law = TopScores(1.0, Scores(masks))
    store = Store(weights)
    run = Run(store, Method(Central(2), law, SGD(), mu=1e-4, lr=1e-2), 0)
    before = weights["2.weight"].clone()
    hidden = torch.tanh(model[0](x)).detach()
    run.step(sequential(lambda: float((hidden @ weights["2.weight"].mul(1.0).T).square().mean())))
    moved = weights["2.weight"] != before
    assert torch.equal(moved, masks["2.weight"])


def weighted_error(w: np.ndarray, d: np.ndarray, product: np.ndarray) -> float:
    return float(np.sum((d[:, None] * (w - product)) ** 2))


def test_the_weighted_factors_are_the_best_of_their_rank() -> None:
    """Least weighted error at every rank: below the plain SVD, 1,000 random products, and descent from there."""
    rng = np.random.default_rng(0)
    w, d = rng.normal(size=(6, 8)), rng.uniform(0.1, 3.0, 6)
    u, s, vt = np.linalg.svd(w)
    for rank in range(1, 6):
        a, b = (x.numpy() for x in compress.weighted_svd(torch.from_numpy(w), torch.from_numpy(d), rank))
        assert a.shape == (6, rank)
        assert b.shape == (rank, 8)
        best = weighted_error(w, d, a @ b)
        assert best < weighted_error(w, d, (u[:, :rank] * s[:rank]) @ vt[:rank])
        trials = []
        for _ in range(1000):
            v = rng.normal(size=(rank, 8))
            trials.append(weighted_error(w, d, w @ np.linalg.pinv(v) @ v))
        assert best < min(trials)
        nearby = [weighted_error(w, d, (a + 1e-3 * rng.normal(size=a.shape)) @ b) for _ in range(100)]
        assert best <= min(nearby)
    exact = compress.weighted_svd(torch.from_numpy(w), torch.ones(6), 6)
    np.testing.assert_allclose(exact[0] @ exact[1], w, atol=1e-12)


def test_the_fisher_information_of_rows_from_evaluations_is_that_of_autograd() -> None:
    """E d_i^2 = sum_j E g_ij^2: over 150 batches of one example within 5 standard errors, and rank correlation 0.8."""
    model, x = net(), inputs(150)
    labels = torch.arange(150) % 5
    layers = compress.linear_layers(model, "0")

    def loss(k: int) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x[k : k + 1]), labels[k : k + 1])

    exact = compress.row_fisher_by_autograd(layers, [lambda k=k: loss(k) for k in range(150)])["0"]
    by_hand = torch.stack([torch.autograd.grad(loss(k), model[0].weight)[0].square().sum(1) for k in range(150)])
    torch.testing.assert_close(exact, by_hand.mean(0).sqrt())
    store = Store({"0.weight": model[0].weight})
    oracles = [sequential(lambda k=k: float(loss(k))) for k in range(150)]
    with torch.no_grad():
        found = compress.row_fisher(store, oracles)["0.weight"]
    spread = by_hand.std(0) * 2.0 + by_hand.mean(0)  # of one squared slope, at most twice the spread over batches
    assert ((found**2 - exact**2).abs() < 5 * spread / 150**0.5).all()
    ranks = [t.argsort().argsort().double() for t in (found, exact)]
    assert float(torch.corrcoef(torch.stack(ranks))[0, 1]) > 0.8


def test_factors_take_the_place_of_a_layer_and_come_back_from_a_file(tmp_path: Path) -> None:
    model, x = net(), inputs(9)
    other = copy.deepcopy(model)
    made = compress.factorise_(model, compress.linear_layers(model), 0.99, None)
    assert [m.first.shape[0] for m in made.values()] == [compress.rank_of((8, 6), 0.99), compress.rank_of((5, 8), 0.99)]
    w = other[0].weight.detach()
    u, s, vt = torch.linalg.svd(w)
    torch.testing.assert_close(made["0"].dense(), (u[:, :3] * s[:3]) @ vt[:3])
    torch.testing.assert_close(made["0"](x), x @ made["0"].dense().T + other[0].bias)
    compress.save_factors(made, tmp_path / "factors.safetensors")
    torch.testing.assert_close(compress.load_factors(other, tmp_path / "factors.safetensors")(x), model(x))
    with pytest.raises(ValueError, match="and the model no such layer"):
        compress.load_factors(nn.Sequential(nn.Linear(3, 3)), tmp_path / "factors.safetensors")


def test_what_does_not_fit_is_refused_before_anything_changes() -> None:
    model = net()
    layers = compress.linear_layers(model)
    before = copy.deepcopy(model.state_dict())
    good = {name: compress.magnitude(layer.weight) for name, layer in layers.items()}
    refused = [
        (lambda: compress.prune_(layers, good, 1.0), "sparsity is the share"),
        (lambda: compress.prune_(layers, {"0": good["0"]}, 0.5), "there are no scores for 2"),
        (lambda: compress.prune_(layers, {**good, "2": good["0"]}, 0.5), "the scores of 2 have shape"),
        (lambda: compress.wanda(model[0].weight, torch.ones(5)), "W has 6 inputs"),
        (lambda: compress.task_aware(model[0].weight, torch.ones(6), torch.zeros(6)), "not all zero"),
        (
            lambda: compress.task_aware(model[0].weight, torch.ones(6), torch.ones(6), shared=2.0),
            "share of the columns",
        ),
        (lambda: compress.weighted_svd(model[0].weight, torch.zeros(8), 2), "not all 0"),
        (lambda: compress.weighted_svd(model[0].weight, torch.ones(8), 7), "it lies between 1 and 6"),
        (lambda: compress.factorise_(model, layers, 0.0), "keep is the share"),
        (lambda: compress.factorise_(model, layers, 0.5, {"0": torch.ones(8)}), "no weights of rows for 2"),
        (lambda: compress.linear_layers(model, "7"), "matches '7'; it has 0, 2"),
        (lambda: compress.activation_norms(layers, []), "no forward reached 0"),
        (lambda: compress.row_fisher_by_autograd(layers, []), "there are no losses"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_row_of_signs_is_on_its_row_alone() -> None:
    store = Store({"a": torch.zeros(3, 4), "b": torch.zeros(5)})
    v = Vector(((RowSigns(7, 0, 1), 1.0),))
    found = [block.v[0].clone().view(block.leaf.shape) for block in store.blocks(v)]
    assert found[0].abs().tolist() == [[0.0] * 4, [1.0] * 4, [0.0] * 4]
    assert not found[1].any()
