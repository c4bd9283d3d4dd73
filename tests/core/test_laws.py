"""Property laws of directions: orthogonal batches, low rank, masks; and what published code does differently."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bases import dct, orthonormal
from small_problems import DTYPES, LAWS, dense, loss_of, tensors

from zograd import AskTell, methods
from zograd.core.keys import Shared
from zograd.core.run import Method, Run
from zograd.core.tape import pack_record
from zograd.core.vector import Noise, Vector
from zograd.estimators import Central, Forward
from zograd.laws import (
    DCT,
    Components,
    Draw,
    Gaussian,
    LowRank,
    Orthogonal,
    Projected,
    Rademacher,
    Scattered,
    Scores,
    SmallWeights,
    Subspace,
    TopScores,
    Walsh,
    sensitivity,
    strongest_columns,
)
from zograd.laws.coordinate import Unit, unit
from zograd.laws.factors import factor, frame, part, product, triangle
from zograd.laws.lowrank import Outer
from zograd.laws.orthogonal import gram_schmidt
from zograd.noise import Kind
from zograd.oracles import sequential
from zograd.rules import SGD, FactorMomentum, Momentum, SubspaceMuon
from zograd.rules.lowrank import msign_newton_schulz5
from zograd.stores import Store

CPU = torch.device("cpu")


def store_of(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Store:
    return Store({f"w{k}": torch.zeros(s, dtype=dtype) for k, s in enumerate(shapes)})


def batch(law, store: Store, n: int, step: int, seed: int = 5) -> np.ndarray:
    """The directions of one step, one a row."""
    first = Draw(seed, step, 0, tuple(leaf.shape for leaf in store.leaves), store.gram)
    return np.stack([elements(store, law(first.number(j))) for j in range(n)])


def elements(store: Store, vector: Vector) -> np.ndarray:
    return np.concatenate([b.v[0].double().numpy().copy() for b in store.blocks(vector)])


# ---- orthogonal ------------------------------------------------------------------------------------------------------


def test_orthogonal_directions_are_orthogonal_of_norm_root_d() -> None:
    rows = batch(Orthogonal(), store_of((5, 4), (12,)), 32, 0)
    np.testing.assert_allclose(rows @ rows.T, 32 * np.eye(32), atol=1e-9)


def test_walsh_directions_are_orthogonal_where_leaf_sizes_allow_and_nearly_elsewhere() -> None:
    """Exactly for multiples of 8 and j < 8; else within (leaves) 2^floor(log2(j xor k))."""
    rows = batch(Walsh(), store_of((16, 2), (8,)), 8, 0)
    np.testing.assert_array_equal(rows @ rows.T, 40 * np.eye(8))
    store = store_of((7, 3), (13,), (1, 5))
    rows = batch(Walsh(), store, 16, 1)
    inner = np.abs(rows @ rows.T)
    bound = [[3 * 2 ** int(math.log2(j ^ k)) if j != k else 39 for k in range(16)] for j in range(16)]
    assert np.all(inner <= np.array(bound))
    assert inner[0, 1] > 0


@pytest.mark.parametrize(("law", "steps"), [(Orthogonal(), 1500), (Walsh(), 1500)], ids=["Orthogonal", "Walsh"])
def test_orthogonal_batches_have_variance_d_over_b_minus_1(law, steps: int) -> None:
    """d = 64, b = 8: 7.0, and 7.875 for independent Rademacher directions (3 %)."""
    store, d, b = store_of((d := 64,)), 64, 8
    g = np.cos(np.arange(d))
    g /= np.linalg.norm(g)

    def total(one) -> float:
        squares = []
        for t in range(steps):
            v = batch(one, store, b, t)
            squares.append(np.sum(((v @ g) @ v / b - g) ** 2))
        return float(np.mean(squares))

    assert total(law) == pytest.approx(d / b - 1, rel=0.03)
    if law == Walsh():
        assert total(Rademacher()) == pytest.approx((d - 1) / b, rel=0.03)


def test_d_orthogonal_directions_measure_the_gradient() -> None:
    """On a quadratic the central estimate with n = d is the gradient, to rounding."""
    a = np.diag(np.linspace(1, 3, 12))
    loop = AskTell(np.ones(12), Method(Central(12), Orthogonal(), SGD(), mu=0.5, lr=0.1), seed=3)
    loop.tell([float(x @ a @ x / 2) for x in loop.ask()])
    np.testing.assert_allclose(loop.x, np.ones(12) - 0.1 * np.diag(a), rtol=1e-12)


def test_more_orthogonal_directions_than_dimensions_are_refused() -> None:
    loop = AskTell(np.zeros(3), methods.zo_orthogonal(n=4), seed=0)
    with pytest.raises(ValueError, match="use at most n=3 directions, or law=Rademacher"):
        loop.ask()


def test_gram_schmidt_is_the_inverse_cholesky_factor() -> None:
    z = np.random.default_rng(0).normal(size=(6, 9))
    c = gram_schmidt(z @ z.T)
    np.testing.assert_allclose(c, np.linalg.inv(np.linalg.cholesky(z @ z.T)), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="vector 1 is a combination of the 1 before it"):
        gram_schmidt(np.ones((2, 2)))


def test_a_unit_is_one_element() -> None:
    store = store_of((2, 3), (4,))
    np.testing.assert_array_equal(elements(store, Vector(((Unit(1, 2), 3.0),))), 3.0 * np.eye(1, 10, 8)[0])
    assert [unit(i, ((2, 3), (4,))) for i in (0, 5, 6, 9)] == [Unit(0, 0), Unit(0, 5), Unit(1, 0), Unit(1, 3)]
    with pytest.raises(IndexError, match="there are 10 coordinates"):
        unit(10, ((2, 3), (4,)))


# ---- low rank --------------------------------------------------------------------------------------------------------


def test_rank_one_noise_has_variance_m_plus_2_times_n_plus_2_minus_1() -> None:
    """m = 3, n = 5: 34, against 16 of the Gaussian (4 standard errors)."""
    store, m, n = store_of((3, 5)), 3, 5
    g = np.linspace(-1, 1, 15)
    g /= np.linalg.norm(g)
    rows = np.stack([batch(LowRank(1, 1), store, 1, t)[0] for t in range(9_000)])
    squares = (((rows @ g)[:, None] * rows - g) ** 2).sum(1)
    error = squares.std() / math.sqrt(len(squares))
    assert error < 0.07 * 34
    assert abs(squares.mean() - ((m + 2) * (n + 2) - 1)) < 4 * error


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_elements_have_variance_one_whatever_the_rank(rank: int) -> None:
    """Without 1/sqrt(r), as in the released LOZO, they would have variance r."""
    store = store_of((200, 200))
    v = np.concatenate([batch(LowRank(rank, 50), store, 1, 50 * t)[0] for t in range(30)])
    assert np.mean(v**2) == pytest.approx(1.0, rel=0.1)


def test_subzero_sees_the_gradient_in_its_subspace() -> None:
    """E[D_v v | U, V] = (mn / r^2) U U^T G V V^T, from 3,000 directions of one period (3 standard errors)."""
    m, n, r = 8, 6, 2
    store, law = store_of((m, n)), Subspace(r, 10_000)
    g = np.random.default_rng(1).normal(size=(m, n))
    v = np.stack([batch(law, store, 1, t)[0] for t in range(3_000)])
    sandwich = law(Draw(5, 0, 0, ((m, n),), store.gram)).terms[0][0]
    u, w = orthonormal(sandwich.left, 0, m, r), orthonormal(sandwich.right, 0, n, r)
    expected = (m * n / r**2) * u @ u.T @ g @ w @ w.T
    estimates = (v @ g.ravel())[:, None] * v
    error = math.sqrt(estimates.var(0).sum() / len(v))
    gap = np.linalg.norm(estimates.mean(0).reshape(m, n) - expected)
    assert gap < 3 * error < 0.2 * np.linalg.norm(expected)
    assert np.linalg.matrix_rank(v[:50]) == r * r


def test_lozo_leaves_its_subspace_at_a_refresh_and_tezo_never_does() -> None:
    store = store_of((7, 9))
    lozo = [batch(LowRank(2, 5), store, 1, t)[0].reshape(7, 9) for t in range(10)]
    assert np.linalg.matrix_rank(np.concatenate(lozo[:5])) == 2
    assert np.linalg.matrix_rank(np.concatenate(lozo[5:])) == 2
    assert np.linalg.matrix_rank(np.concatenate(lozo)) == 4
    assert np.linalg.matrix_rank(batch(Components(3), store, 1, 0)[0].reshape(7, 9)) == 3
    tezo = np.stack([batch(Components(3), store, 1, t)[0] for t in range(60)])
    assert np.linalg.matrix_rank(tezo) == 3


def test_a_rank_above_a_side_is_cut_to_it() -> None:
    """U and V are then square, and the direction is dense Gaussian noise rotated: full rank, elements of variance 1."""
    store = store_of((3, 40))
    v = np.stack([batch(Subspace(24, 1), store, 1, t)[0] for t in range(300)])
    assert np.linalg.matrix_rank(v[0].reshape(3, 40)) == 3
    assert np.mean(v**2) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("law", [law for law in LAWS if not law.slots], ids=lambda law: type(law).__name__)
def test_no_two_tensors_share_noise(law) -> None:
    """|correlation| < 3 / sqrt(n) between two leaves of one shape; one generator seed for all of them would give 1."""
    store = store_of((60, 80), (60, 80))
    a, b = np.split(batch(law, store, 2, 0)[1], 2)
    assert abs(np.mean(a * b)) < 3 / math.sqrt(a.size) * max(1.0, np.mean(a**2))


def test_lozo_steps_along_what_it_probed_also_when_v_is_resampled() -> None:
    """|cos(probe, update)| = 1 at every step, refresh steps too; V drawn anew in between, as released, loses it."""
    weights = tensors(torch.float64, (30, 40))
    run = Run(Store(weights), methods.lozo(lr=1e-2, rank=2, refresh=3), 1)
    loss = loss_of(weights)
    for step in range(9):
        before = weights["w0"].clone()
        probe = run.ask()[0].at
        v = elements(run.store, probe)
        run.step(sequential(loss))
        moved = (weights["w0"] - before).numpy().ravel()
        cosine = abs(v @ moved) / np.linalg.norm(v) / np.linalg.norm(moved)
        assert cosine == pytest.approx(1.0, abs=1e-9), step
        e = probe.terms[0][0]
        redrawn = elements(run.store, Vector(((Outer(e.key, e.right + 1, e.rank), 1.0),)))
        assert abs(v @ redrawn) / np.linalg.norm(v) / np.linalg.norm(redrawn) < 0.3


def test_lozo_momentum_survives_a_refresh_in_the_new_coordinates() -> None:
    """With a constant loss, the step after a refresh is beta times the old one, projected on the new V."""
    weights = tensors(torch.float64, (6, 50))
    x = weights["w0"]
    run = Run(Store(weights), methods.lozo_m(lr=1.0, rank=2, refresh=2, beta=0.5), 4)
    moves, factors, constant = [], [], [False, False, True, True]
    for flat in constant:
        before = x.clone()
        factors.append(run.ask()[0].at.terms[0][0].right)
        run.step(sequential(lambda flat=flat: 1.0 if flat else loss_of(weights)()))
        moves.append((x - before).numpy())
    assert factors[1] != factors[2]
    from bases import gaussian

    old, new = gaussian(factors[1], 0, 50, 2), gaussian(factors[2], 0, 50, 2)
    n_old = moves[1] @ old @ np.linalg.inv(old.T @ old)
    np.testing.assert_allclose(moves[2], 0.5 * (n_old @ old.T @ new / 50) @ new.T, rtol=1e-8)
    np.testing.assert_allclose(moves[3], 0.5 * moves[2], rtol=1e-8)


def test_rules_in_thin_coordinates_refuse_other_laws() -> None:
    with pytest.raises(TypeError, match="FactorMomentum\\(rank=2\\) reads the factors of LowRank\\(rank=2"):
        Method(Central(), LowRank(3, 50), FactorMomentum(rank=2))
    with pytest.raises(TypeError, match="SubspaceMuon reads the subspace of Projected"):
        Method(Central(), Gaussian(), SubspaceMuon())
    Method(Central(), LowRank(3, 50), Momentum())


def test_the_tape_holds_names_and_no_arrays() -> None:
    """A record of a low-rank method on 1,200 weights takes less than 300 bytes."""
    weights = tensors(torch.float64, (30, 40))
    for name in ("lozo", "subzero", "tezo", "zo_dct", "eggroll"):
        run = Run(Store(weights), methods.make(name, n=1), 1)
        assert len(pack_record(run.step(sequential(loss_of(weights))))) < 300


@pytest.mark.parametrize("make", [LowRank, Components, Subspace, Projected, DCT])
def test_a_rank_of_zero_is_refused(make) -> None:
    with pytest.raises(ValueError, match="rank >= 1"):
        make(0)


# ---- products with the same bits however they are cut ----------------------------------------------------------------


def test_products_are_accurate_and_do_not_depend_on_the_cut() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.rand(24, size, generator=g, dtype=torch.float64) * 2 - 1 for size in (30, 70))
    whole = product(factor(a, 1.0), factor(b, 1.0))
    torch.testing.assert_close(whole, a.T @ b, rtol=0, atol=24 * 2.0**-42)
    for rows in (1, 7, 30):
        for columns in (1, 16, 70):
            assert torch.equal(
                product(factor(a[:, :rows], 1.0), part(factor(b, 1.0), slice(columns))), whole[:rows, :columns]
            )


@pytest.mark.parametrize(("rows", "rank"), [(50, 8), (300, 64), (5, 5)])
def test_frames_are_the_q_of_numpy(rows: int, rank: int) -> None:
    q = frame(77, rank, 3, 0, rows, rows, CPU).T.numpy()
    np.testing.assert_allclose(q.T @ q, np.eye(rank), atol=1e-9)
    np.testing.assert_allclose(q, orthonormal(77, 3, rows, rank), atol=1e-9)
    assert triangle(77, rank, 3, rows, CPU).shape == (rank, rank)


# ---- ZO-Muon ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 30), (30, 4), (6, 6)])
def test_newton_schulz_brings_singular_values_near_one(shape) -> None:
    """Those above 3 % of the largest end between 0.65 and 1.25; the singular vectors stay."""
    rng = np.random.default_rng(2)
    u, _, v = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    s = np.geomspace(1, 0.05, min(shape))
    x = msign_newton_schulz5(torch.from_numpy(u * s @ v)).numpy()
    core = u.T @ x @ v.T
    np.testing.assert_allclose(core, np.diag(np.diag(core)), atol=1e-9)
    assert np.all((np.diag(core) > 0.65) & (np.diag(core) < 1.25))
    assert not msign_newton_schulz5(torch.zeros(shape, dtype=torch.float64)).any()


def test_zo_muon_steps_in_the_subspace_of_all_its_probes() -> None:
    """The step is P msign(sum_j c_j Psi_j) with the P of every probe; not of the last one, as released."""
    weights = tensors(torch.float64, (12, 20))
    x = weights["w0"]
    before = x.clone().numpy()
    run = Run(Store(weights), methods.zo_muon(lr=1.0, n=3, rank=4, refresh=5), 2)
    probes = [elements(run.store, q.at).reshape(12, 20) for q in run.ask()[1:]]
    record = run.step(sequential(loss_of(weights)))
    key = Draw(2, 0, 0, ((12, 20),), run.store.gram).shared(Shared.LEFT, 5)
    p = orthonormal(key, 0, 12, 4)
    for v in probes:
        np.testing.assert_allclose(p @ p.T @ v, v, atol=1e-9)
    f0, *f = record.losses
    g = sum((fj - f0) * p.T @ v for fj, v in zip(f, probes, strict=True))
    step = before - x.numpy()
    np.testing.assert_allclose(step, p @ msign_newton_schulz5(torch.from_numpy(g)).numpy(), atol=1e-8)
    last = p @ msign_newton_schulz5(torch.from_numpy((f[-1] - f0) * p.T @ probes[-1])).numpy()
    assert np.linalg.norm(last - step) > 0.3 * np.linalg.norm(step), "the last sample alone gives another step"


def test_zo_muon_sees_no_scale_of_the_loss() -> None:
    method = Method(Forward(3), Projected(2, 5), SubspaceMuon(), mu=1e-3, lr=1e-2)
    ends = []
    for scale in (1.0, 2.0**20):
        weights = tensors(torch.float64, (6, 9))
        run, loss = Run(Store(weights), method, 0), loss_of(weights)
        for _ in range(5):
            run.step(sequential(lambda loss=loss, scale=scale: scale * loss()))
        ends.append(weights["w0"].clone())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=0)


# ---- cosines ---------------------------------------------------------------------------------------------------------


def test_dct_directions_lie_in_the_chosen_cosines() -> None:
    store = store_of((6, 10))
    v = batch(DCT(2, 4, (1, 7)), store, 1, 0)[0].reshape(6, 10) @ dct(10)
    np.testing.assert_allclose(np.delete(v, [1, 7], axis=1), 0, atol=1e-12)
    assert np.abs(v[:, [1, 7]]).min() > 0
    spectra = [np.abs(batch(DCT(3, 4), store, 1, t)[0].reshape(6, 10) @ dct(10)).max(0) > 1e-9 for t in range(8)]
    assert all(s.sum() == 3 for s in spectra)
    assert all(np.array_equal(s, spectra[0]) for s in spectra[:4])
    assert not np.array_equal(spectra[4], spectra[0])


def test_the_strongest_columns_are_found() -> None:
    rng = np.random.default_rng(0)
    g = 1e-3 * rng.normal(size=(8, 16)) + rng.normal(size=(8, 3)) @ dct(16)[:, [2, 5, 11]].T
    assert strongest_columns([torch.from_numpy(g), torch.from_numpy(-g)], 3) == (2, 5, 11)
    with pytest.raises(ValueError, match="17 columns were asked for, there are 16"):
        strongest_columns([torch.from_numpy(g)], 17)
    with pytest.raises(ValueError, match="no common DCT"):
        strongest_columns([torch.zeros(2, 3), torch.zeros(2, 4)], 1)
    with pytest.raises(ValueError, match="2 columns for rank 3; use rank=2"):
        DCT(3, 1, (0, 1))
    with pytest.raises(ValueError, match="DCT column 9 was chosen, but leaf 0 has 5 columns"):
        batch(DCT(1, 1, (9,)), store_of((4, 5)), 1, 0)


# ---- masks -----------------------------------------------------------------------------------------------------------


def ramp(leaf) -> torch.Tensor:
    return torch.arange(1.0, leaf.numel + 1).view(leaf.shape) / leaf.numel


MASKS = (SmallWeights(0.6), TopScores(0.3, ramp))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("law", MASKS, ids=lambda law: type(law).__name__)
@pytest.mark.filterwarnings("ignore:this step changed")
def test_weights_outside_of_the_mask_keep_their_bits(law, dtype: torch.dtype) -> None:
    """After 300 steps: those off the first mask are bit-identical, those on it have moved."""
    weights = tensors(dtype, (6, 5), (7,))
    run = Run(Store(weights), Method(Central(), law, SGD(), mu=1e-2, lr=1e-2), 3)
    draw = Draw(3, 0, 0, tuple(leaf.shape for leaf in run.store.leaves), run.store.gram)
    on = np.split(elements(run.store, law.support(draw)) == 1, [30])
    start = [w.float().numpy().ravel().copy() for w in weights.values()]
    for _ in range(300):
        run.step(sequential(loss_of(weights)))
    for mask, before, w in zip(on, start, weights.values(), strict=True):
        after = w.float().numpy().ravel()
        assert 0 < mask.sum() < mask.size
        np.testing.assert_array_equal(after[~mask], before[~mask])
        assert np.mean(after[mask] != before[mask]) > 0.9


def test_a_scattered_mask_is_kept_for_its_period_and_then_redrawn() -> None:
    weights = tensors(torch.float64, (20, 20))
    run = Run(Store(weights), Method(Central(), Scattered(0.25, 4), SGD(), mu=1e-2, lr=1e-3), 3)
    changed = []
    for _ in range(8):
        before = weights["w0"].clone()
        run.step(sequential(loss_of(weights)))
        changed.append((weights["w0"] != before).numpy())
    assert all(np.array_equal(c, changed[0]) for c in changed[:4])
    assert all(np.array_equal(c, changed[4]) for c in changed[4:])
    assert abs(changed[0].mean() - 0.25) < 4.5 * math.sqrt(0.25 * 0.75 / 400)
    assert np.mean(changed[0] & changed[4]) < 0.15


def test_densities_are_kept_by_leaf() -> None:
    store = store_of((100, 50), (3000,), (200,))
    law = Scattered([0.5, 0.1, 0.0], 7)
    store.require(law.slots)
    law.prepare(store)
    mask = np.split(elements(store, law.support(Draw(0, 0, 0, (), store.gram))), [5000, 8000])
    for piece, density in zip(mask, (0.5, 0.1, 0.0), strict=True):
        assert abs(piece.mean() - density) <= 4.5 * math.sqrt(density * (1 - density) / piece.size)
    with pytest.raises(ValueError, match="1 densities were given for 3 tensors"):
        Scattered([0.5], 7).prepare(store)


def test_the_mask_is_that_of_the_unperturbed_weights_in_probes_and_update() -> None:
    """mu is so large that perturbed weights cross h: a mask taken from those would differ."""
    weights = tensors(torch.float64, (10, 10))
    run = Run(Store(weights), Method(Central(), SmallWeights(0.5), SGD(), mu=0.5, lr=0.5), 1)
    x = weights["w0"]
    h = float(x.abs().median())
    before = x.numpy().ravel().copy()
    plus, minus = (elements(run.store, q.at) for q in run.ask())
    record = run.step(sequential(loss_of(weights)))
    update = before - x.numpy().ravel()
    on = np.abs(before) <= h
    for v in (plus, minus, update):
        np.testing.assert_array_equal(v != 0, on)
    np.testing.assert_allclose(np.abs(plus @ update), np.linalg.norm(plus) * np.linalg.norm(update), rtol=1e-12)
    assert not np.array_equal(np.abs(before + plus) <= h, np.abs(before + minus) <= h)
    assert record.moved == on.mean()


@pytest.mark.parametrize("kept", [8, 32, 64])
def test_the_variance_is_in_proportion_to_the_mask(kept: int) -> None:
    """E|D_v v - g_S|^2 / |g_S|^2 = |S| + 1 for the Gaussian inner law (4.5 s.e.)."""
    store = store_of((64,))
    law = TopScores(kept / 64, ramp)
    store.require(law.slots)
    law.prepare(store)
    on = elements(store, law.support(Draw(0, 0, 0, ((64,),), store.gram)))
    g = on * np.cos(np.arange(64))
    assert on.sum() == kept
    v = np.stack([batch(law, store, 1, t)[0] for t in range(6000)])
    squares = (((v @ g)[:, None] * v - g) ** 2).sum(1) / (g @ g)
    assert abs(squares.mean() - (kept + 1)) < 4.5 * squares.std() / math.sqrt(len(v))


def test_thresholds_are_percentiles_of_each_leaf_at_the_start() -> None:
    weights = {"a": torch.linspace(-1, 1, 21), "b": torch.linspace(10, 20, 11)}
    run = Run(Store(weights), methods.sparse_mezo(sparsity=0.75), 0)
    a, b = (float(leaf.slots["mask_threshold"]) for leaf in run.store.leaves)
    assert a == pytest.approx(0.2)  # 5 of 21 lie at or below
    assert b == pytest.approx(12.0)  # 3 of 11


def test_scores_come_from_a_file_and_are_checked(tmp_path) -> None:
    weights = tensors(torch.float32, (4, 5), (6,))
    mask = {"w0": torch.zeros(4, 5, dtype=torch.bool), "w1": torch.tensor([1, 0, 0, 1, 0, 0]).bool()}
    Scores(mask).save(tmp_path / "mask.safetensors")
    scores = Scores.load(tmp_path / "mask.safetensors")
    store = Store(weights)
    Run(store, methods.senszoq(scores, density=1.0), 0)
    assert [leaf.slots["mask"].tolist() for leaf in store.leaves] == [[False] * 20, mask["w1"].tolist()]
    with pytest.raises(ValueError, match="there are no scores for 'w0'"):
        Run(Store(weights), methods.senszoq(Scores({"w1": mask["w1"]})), 0)
    with pytest.raises(ValueError, match=r"pass scores=Scores\.load"):
        Run(Store(weights), Method(Central(), TopScores(), SGD()), 0)
    with pytest.raises(ValueError, match="no score is above 0"):
        Run(Store(weights), methods.senszoq(lambda leaf: torch.zeros(leaf.shape)), 0)


def test_sensitivity_finds_the_steep_coordinates() -> None:
    """Ten slopes of 10 among thirty of 1: exactly those have the highest scores after 20 batches."""
    x = torch.zeros(8, 5, dtype=torch.float64)
    slope = torch.where(torch.arange(40) < 30, 1.0, 10.0).double()
    store = Store({"x": x})
    scores = sensitivity(store, [sequential(lambda: float(torch.sum(x.view(-1) * slope)))] * 20, n=39)
    best = scores.by_name["x"].view(-1).argsort(descending=True)[:10].tolist()
    assert set(best) == set(range(30, 40))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SmallWeights(1.0), "sparsity is the fraction of weights left alone"),
        (lambda: TopScores(0.0), "density is the fraction of weights that move"),
        (lambda: Scattered(0.0), "densities are fractions in"),
        (lambda: Scattered(0.1, 0), "refresh must be at least 1 step"),
    ],
)
def test_masks_that_make_no_sense_are_refused(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_mask_may_hide_any_law() -> None:
    """Masks nest, and hide multi-term directions."""
    weights = tensors(torch.float64, (4, 6))
    store = Store(weights)
    law = TopScores(0.5, ramp, SmallWeights(0.5, Orthogonal()))
    store.require(law.slots)
    law.prepare(store)
    assert set(law.slots) == {"mask", "mask_threshold"}
    x = weights["w0"].numpy().ravel()
    on = (np.arange(24) >= 12) & (np.abs(x) <= np.sort(np.abs(x))[11])
    v = batch(law, store, 3, 0)
    full = batch(Orthogonal(), store, 3, 0)
    np.testing.assert_allclose(v, on * full, atol=1e-13)
    assert dense(Vector(((Noise(Kind.SIGN, 3), 1.0),)), (24,)).shape == (24,)


# ---- what the loss sees ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "bfloat16-split"])
@pytest.mark.parametrize(
    "law", [Walsh(), LowRank(2), Subspace(2), SmallWeights(0.5)], ids=lambda law: type(law).__name__
)
def test_an_embedding_looks_its_rows_up_at_the_point(law, kind: str) -> None:
    """Single, repeated and neighbouring rows: the bits of the whole table at the point."""
    dtype, rounding = DTYPES[kind]
    weights = tensors(dtype, (50, 6), (9, 6))
    store = Store(weights, rounding=rounding)
    run = Run(store, Method(Central(2), law, SGD(), mu=0.1, lr=0.1), 3)
    run.step(sequential(loss_of(weights)))
    point = run.ask()[2].at
    leaf, tokens = store.leaves[0], torch.tensor([[3, 4, 5, 49], [0, 4, 48, 20]])
    table = store.point_(torch.empty(300, dtype=dtype), leaf, point).view(50, 6)
    with torch.no_grad(), store.at(point):
        seen = F.embedding(tokens, leaf.tensor)
    assert torch.equal(seen, table[tokens])
