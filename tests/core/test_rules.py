"""Laws of the rules: fed with a known gradient, they are the optimizers of torch; what torch has not, is its formula.

The gradient is a slot of the store, so the estimate is one term that names it and no noise is involved.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from zograd.core.query import Estimate
from zograd.core.run import Method, Run
from zograd.core.vector import Noise, Slot, Vector
from zograd.estimators import Central, FromBlocks, Recentred, SimulatedMomentum, Spread
from zograd.estimators.simulated import Anneal
from zograd.laws import Gaussian, Rademacher
from zograd.noise import Kind
from zograd.rules import (
    SGD,
    Adam,
    AdaMU,
    AMSGrad,
    FrankWolfe,
    Lion,
    Momentum,
    NormalizedLion,
    Optimistic,
    Proximal,
    ReplayAdam,
    ReplayMomentum,
    Sign,
    SpreadSGD,
)
from zograd.sets import L1, GroupL2, L1Ball
from zograd.spaces import PositiveOrthant
from zograd.stores import Leaf, Rate, Store

SHAPES = ((4, 3), (5,), (2, 2, 2))
STEPS = 25


def start(dtype: torch.dtype) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64).to(dtype)) for s in SHAPES]


def gradients(dtype: torch.dtype) -> list[list[torch.Tensor]]:
    """Those of step t, one a tensor: of changing size and sign, with exact zeros among them."""
    g = torch.Generator().manual_seed(1)
    steps = []
    for t in range(STEPS):
        steps.append(
            [(torch.randn(s, generator=g, dtype=torch.float64) * 2.0 ** (t % 5 - 2)).to(dtype) for s in SHAPES]
        )
        steps[-1][0][t % 4] = 0.0
    return steps


class Fed:
    """A store whose estimate of step t is the slot that holds the gradient of step t."""

    def __init__(
        self, rule: Any, parameters: list[nn.Parameter], *, weight_decay: float = 0.0, space: Any = None
    ) -> None:
        self.rule, self.state = rule, {}
        self.weight_decay, self.t = weight_decay, 0
        self.store = Store({f"p{i}": p for i, p in enumerate(parameters)}, space=space)
        self.store.require(rule.slots)

    def step(self, grads: list[torch.Tensor], lr: float, aux: Any = None) -> None:
        slot = f"gradient {self.t}"  # a name of its own: momentum remembers the vector, not the numbers
        self.store.require({slot: 0.0})
        for leaf, g in zip(self.store.leaves, grads, strict=True):
            leaf.slots[slot].copy_(g.reshape(-1))
        estimate = Estimate(Vector(((Slot(slot), 1.0),)), 0.0, [], aux)
        self.rule.apply(self.store.iterate([Rate(lr, self.weight_decay)], self.t), estimate, self.state)
        self.t += 1


def follows_torch(rule: Any, make_torch: Any, dtype: torch.dtype, tolerance: float, weight_decay: float = 0.0) -> None:
    ours, theirs = start(dtype), start(dtype)
    fed = Fed(rule, ours, weight_decay=weight_decay)
    opt = make_torch(theirs)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, STEPS)
    for grads in gradients(dtype):
        fed.step(grads, opt.param_groups[0]["lr"])
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g.clone()
        opt.step()
        schedule.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 1e-5)]
by_precision = pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=["float64", "float32"])
by_chunk = pytest.mark.parametrize("chunk", [3, 1 << 18])


@pytest.fixture
def chunked(monkeypatch, chunk):
    monkeypatch.setattr(Leaf, "block", chunk)


@by_chunk
@by_precision
def test_sgd_is_torch_sgd(dtype: torch.dtype, tolerance: float, chunked) -> None:
    follows_torch(SGD(), lambda p: torch.optim.SGD(p, lr=0.1), dtype, tolerance)


@by_chunk
@by_precision
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_momentum_is_torch_momentum(beta: float, dtype: torch.dtype, tolerance: float, chunked) -> None:
    follows_torch(Momentum(beta), lambda p: torch.optim.SGD(p, lr=0.05, momentum=beta), dtype, tolerance)


@by_precision
def test_replayed_momentum_is_torch_momentum_within_its_window(dtype: torch.dtype, tolerance: float) -> None:
    """No difference while the window holds all steps."""
    rule = ReplayMomentum(0.9, window=STEPS)
    follows_torch(rule, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), dtype, tolerance * 10)


@by_chunk
@by_precision
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)])
def test_adam_is_torch_adam(betas: tuple[float, float], dtype: torch.dtype, tolerance: float, chunked) -> None:
    rule = Adam(*betas, eps=1e-6)
    follows_torch(rule, lambda p: torch.optim.Adam(p, lr=0.05, betas=betas, eps=1e-6), dtype, tolerance * 10)


@by_chunk
@by_precision
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)])
def test_replayed_adam_is_torch_adam_within_its_window(
    betas: tuple[float, float], dtype: torch.dtype, tolerance: float, chunked
) -> None:
    rule = ReplayAdam(*betas, eps=1e-6, window=STEPS)
    follows_torch(rule, lambda p: torch.optim.Adam(p, lr=0.05, betas=betas, eps=1e-6), dtype, tolerance * 100)


@by_precision
def test_adam_with_decoupled_decay_is_torch_adamw(dtype: torch.dtype, tolerance: float) -> None:
    def adamw(p: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(p, lr=0.05, eps=1e-6, weight_decay=0.3)

    follows_torch(Adam(eps=1e-6), adamw, dtype, tolerance * 10, weight_decay=0.3)


@by_chunk
def test_amsgrad_is_torch_amsgrad_without_its_bias_corrections(chunked) -> None:
    """torch moves by lr m / (1 - b1^t) / sqrt(s^ / (1 - b2^t)): ours at lr sqrt(1 - b2^t) / (1 - b1^t)."""
    b1, b2 = 0.9, 0.3
    ours, theirs = start(torch.float64), start(torch.float64)
    fed = Fed(AMSGrad(b1, b2, start=1e-300), ours)
    opt = torch.optim.Adam(theirs, lr=0.05, betas=(b1, b2), eps=1e-150, amsgrad=True)
    for t, grads in enumerate(gradients(torch.float64), 1):
        fed.step(grads, 0.05 * (1 - b2**t) ** 0.5 / (1 - b1**t))
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g.clone()
        opt.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def flat(tensors: Any) -> np.ndarray:
    return torch.cat([t.detach().reshape(-1) for t in tensors]).numpy()


@by_chunk
@pytest.mark.parametrize(
    ("rule", "gradient_of_K"),
    [(Lion(0.8, 0.95), np.sign), (NormalizedLion(0.8, 0.95), lambda c: np.sqrt(c.size) * c / np.linalg.norm(c))],
    ids=["l1", "l2"],
)
def test_lion_k_is_its_formula_over_several_leaves(rule: Any, gradient_of_K: Any, chunked) -> None:
    """c = b1 m + (1 - b1) g, x <- (1 - lr w) x - lr dK(c), m <- b2 m + (1 - b2) g; K sees all leaves as one vector."""
    parameters = start(torch.float64)
    fed = Fed(rule, parameters, weight_decay=0.3)
    x = flat(parameters).copy()
    m = np.zeros_like(x)
    for grads in gradients(torch.float64):
        fed.step(grads, lr=0.05)
        g = flat(grads)
        x = (1 - 0.05 * 0.3) * x - 0.05 * gradient_of_K(0.8 * m + 0.2 * g)
        m = 0.95 * m + 0.05 * g
        np.testing.assert_allclose(flat(parameters), x, rtol=1e-12, atol=1e-13)


def test_lion_with_decay_solves_the_box_constrained_problem() -> None:
    """min |x - a|^2 over |x|_inf <= 1 / w: the clipped a, within a few steps of length lr (Lion-K, Theorem 3.1)."""
    target = torch.tensor([0.2, -5.0, 1.0, 30.0, -0.4], dtype=torch.float64)
    p = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    fed = Fed(Lion(), [p], weight_decay=0.5)
    for _ in range(400):
        fed.step([2 * (p.detach() - target)], lr=0.02)
    np.testing.assert_allclose(p.detach(), target.clamp(-2, 2), atol=0.1)


@pytest.mark.parametrize(("rule", "converges"), [(SGD(), False), (Optimistic(), True)], ids=["descent", "optimistic"])
def test_the_optimistic_step_solves_the_bilinear_game(rule: Any, converges: bool) -> None:
    """min_a max_b a b: the field (b, -a) turns; descent and ascent spiral outwards, the hint turns the spiral in."""
    p = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    fed = Fed(rule, [p])
    for _ in range(400):
        a, b = p.tolist()
        fed.step([torch.tensor([b, -a], dtype=torch.float64)], lr=0.1)
    assert (float(p.detach().norm()) < 0.2) == converges
    assert (float(p.detach().norm()) > 2.0) == (not converges)


def test_the_first_optimistic_step_has_no_hint() -> None:
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    fed = Fed(Optimistic(), [p])
    path = []
    for g in (1.0, 10.0, 100.0):
        fed.step([torch.tensor([g], dtype=torch.float64)], lr=1.0)
        path.append(p.item())
    assert path == [-2.0, -21.0, -211.0]


REPLAYING = [(Optimistic(), "Momentum"), (ReplayMomentum(), "Momentum"), (ReplayAdam(), "Adam")]


@pytest.mark.parametrize(("rule", "instead"), REPLAYING, ids=lambda r: type(r).__name__)
def test_estimates_that_read_slots_cannot_be_replayed(rule: Any, instead: str) -> None:
    """Their numbers have changed when the past estimate is regenerated."""
    with pytest.raises(TypeError, match=rf"of Recentred read the slot 'prior', which changes. Use {instead}\(\)"):
        Method(Recentred(), Rademacher(), rule)
    with pytest.raises(TypeError, match=rf"those of FromBlocks have none. Use {instead}\(\)"):
        Method(FromBlocks("residual"), Rademacher(), rule)


# ---- ZO-AdaMU --------------------------------------------------------------------------------------------------------


def adamu(lr: float = 0.01, **shares: Any) -> Method[Any]:
    return Method(SimulatedMomentum(**shares), Gaussian(), AdaMU(), mu=1e-3, lr=lr)


def test_adamu_without_memory_is_mezo_with_normalised_noise() -> None:
    """alpha = beta1 = beta2 = 1: x <- x - lr D z / sqrt(z^2 + eps), D the slope along z."""
    x = torch.linspace(-1, 1, 30, dtype=torch.float64)
    run = Run(Store({"x": x}), adamu(alpha=1.0, beta1=1.0, beta2=1.0), seed=3)
    for _ in range(5):
        plus, _ = run.ask()
        (z,) = (b.v[0].clone() for b in run.store.blocks(plus.at / 1e-3))
        before = x.clone()
        run.tell([0.5, 0.1])
        torch.testing.assert_close(x, before - 0.01 * 200.0 * z / (z**2 + 1e-8).sqrt(), rtol=1e-12, atol=1e-12)


def test_adamu_moves_along_what_it_probed() -> None:
    """In every phase of the annealing the estimate is the slope times the probed direction: their cosine is 1. The
    released code mixes the probe with fixed weights and the move with annealed ones."""
    method = adamu(**{k: Anneal(phi, 2, 12) for k, phi in (("alpha", 1.0), ("beta1", 0.1), ("beta2", 1.5))})
    run = Run(Store({"x": torch.zeros(40, dtype=torch.float64)}), method, seed=3)
    for t in range(15):
        plus, minus = run.ask()
        gram_before = run.store.gram([plus.at, minus.at])
        assert gram_before[0, 1] == pytest.approx(-gram_before[0, 0])
        record = run.tell([1.0 + 0.01 * (t % 3), 1.0])
        assert record is not None
        probed, moved = dict(plus.at.terms), dict(record.vector.terms)
        assert probed.keys() == moved.keys()
        for e, c in probed.items():
            assert moved[e] == pytest.approx(c / 1e-3 * record.aux[3], rel=1e-12)


def test_the_annealing_of_adamu() -> None:
    """1 before T1, a half-cosine to the power phi, `end` from T2 on (Eq. 7)."""
    for phi in (1.0, 0.1, 1.5):
        anneal = Anneal(phi, 10, 110)
        assert [anneal(0), anneal(9), anneal(10)] == [1.0, 1.0, 1.0]
        assert anneal(60) == pytest.approx(0.5**phi)
        assert anneal(110) == anneal(10_000) == 0.9
    with pytest.raises(ValueError, match="needs start < stop"):
        Anneal(1.0, 5, 5)
    with pytest.raises(TypeError, match="mixes normal noise, and Rademacher draws other"):
        Method(SimulatedMomentum(), Rademacher(), AdaMU())
    with pytest.raises(TypeError, match="Use SimulatedMomentum"):
        Method(Central(), Gaussian(), AdaMU())


def test_sgd_decays_the_weights_and_not_the_gradient() -> None:
    """x <- (1 - lr wd) x - lr g, for momentum too: the decay never enters m."""
    for rule in (SGD(), Momentum(0.9)):
        (p,) = ours = [nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))]
        fed = Fed(rule, ours, weight_decay=0.5)
        x, m = 2.0, 0.0
        for g in (1.0, -2.0, 0.5):
            fed.step([torch.full((3,), g, dtype=torch.float64)], lr=0.1)
            m = g + (0.9 * m if isinstance(rule, Momentum) else 0.0)
            x = (1 - 0.1 * 0.5) * x - 0.1 * m
            np.testing.assert_allclose(p.detach().numpy(), x, rtol=1e-14)


def test_sign_takes_equal_steps_and_none_where_the_gradient_is_zero() -> None:
    p = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    Fed(Sign(), [p]).step([torch.tensor([1e-300, -5.0, 0.0, 3.0], dtype=torch.float64)], lr=0.25)
    assert p.tolist() == [-0.25, 0.25, 0.0, -0.25]


def test_spread_sgd_divides_by_the_slope_and_stops_without_one() -> None:
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    fed = Fed(SpreadSGD(), [p])
    fed.step([torch.tensor([4.0, -8.0], dtype=torch.float64)], lr=0.5, aux=Spread(2.0))
    assert p.tolist() == [-1.0, 2.0]
    fed.step([torch.tensor([4.0, -8.0], dtype=torch.float64)], lr=0.5, aux=Spread(0.0))
    assert p.tolist() == [-1.0, 2.0]


@by_chunk
def test_frank_wolfe_is_its_formula_over_several_leaves(chunked) -> None:
    """The vertex is one coordinate among all leaves; iterates stay in the ball; gamma_t = 2 / (t + 2)."""
    ball = L1Ball(1.5)
    parameters = [nn.Parameter(0.05 * p.detach()) for p in start(torch.float64)]
    fed = Fed(FrankWolfe(ball), parameters)
    x = torch.cat([p.detach().reshape(-1).clone() for p in parameters]).numpy()
    m = np.zeros_like(x)
    for t, grads in enumerate(gradients(torch.float64)):
        fed.step(grads, lr=1.0)
        rho = (t + 1) ** (-2 / 3)
        m = (1 - rho) * m + rho * torch.cat([g.reshape(-1) for g in grads]).numpy()
        s = np.zeros_like(x)
        k = np.abs(m).argmax()
        s[k] = -1.5 * np.sign(m[k])
        x = x + 2 / (t + 2) * (s - x)
        here = torch.cat([p.detach().reshape(-1) for p in parameters])
        np.testing.assert_allclose(here.numpy(), x, rtol=1e-12, atol=1e-14)
        assert ball.explain(here) is None


def test_adam_on_the_positive_orthant_is_adam_on_log_x() -> None:
    x, y = nn.Parameter(torch.rand(6, dtype=torch.float64) + 0.5), None
    y = nn.Parameter(x.detach().log())
    on_x, on_y = Fed(Adam(), [x], space=PositiveOrthant()), Fed(Adam(), [y])
    for grads in gradients(torch.float64):
        g = grads[0].reshape(-1)[:6]
        on_x.step([g], lr=0.1)
        on_y.step([g], lr=0.1)
    torch.testing.assert_close(x.detach(), y.detach().exp(), rtol=1e-11, atol=0)


def test_the_window_of_replayed_momentum_cuts_at_a_thousandth() -> None:
    assert ReplayMomentum(0.9).steps == 66
    assert ReplayMomentum(0.5).steps == 10
    assert ReplayMomentum(0.0).steps == 1
    assert ReplayMomentum(0.99, window=5).steps == 5
    for beta in (0.3, 0.9, 0.97):
        k = ReplayMomentum(beta).steps
        assert beta**k <= 1e-3 < beta ** (k - 1)


@pytest.mark.parametrize("rule", [ReplayMomentum(0.9, window=4), ReplayAdam(window=4)], ids=lambda r: type(r).__name__)
def test_a_replaying_rule_keeps_no_more_than_its_window(rule: Any) -> None:
    fed = Fed(rule, [nn.Parameter(torch.zeros(2, dtype=torch.float64))])
    for _ in range(9):
        fed.step([torch.ones(2, dtype=torch.float64)], lr=0.0)
        assert len(fed.state["past"]) == min(fed.t, 4)


@pytest.mark.parametrize(
    "make",
    [
        Momentum,
        ReplayMomentum,
        lambda b: ReplayAdam(beta1=b),
        lambda b: ReplayAdam(beta2=b),
        lambda b: Adam(beta1=b),
        lambda b: Adam(beta2=b),
        lambda b: AMSGrad(beta2=b),
        lambda b: Lion(beta1=b),
        lambda b: NormalizedLion(beta2=b),
    ],
)
@pytest.mark.parametrize("beta", [1.0, -0.1, float("nan")])
def test_a_beta_outside_of_its_interval_is_refused(make: Any, beta: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\), got"):
        make(beta)


def test_a_window_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="window must be at least 1"):
        ReplayMomentum(0.9, window=0)
    with pytest.raises(ValueError, match="window must be at least 1"):
        ReplayAdam(window=0)


def test_replayed_adam_forgets_what_left_its_window() -> None:
    """A large gradient no longer scales the steps; means over the window are those of a gradient that stays."""
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    fed = Fed(ReplayAdam(window=3), [p])
    moves = []
    for g in (1e3, 2.0, 2.0, 2.0, 2.0):
        before = p.item()
        fed.step([torch.tensor([g], dtype=torch.float64)], lr=1.0)
        moves.append(p.item() - before)
    assert moves[0] == pytest.approx(-1.0)
    assert abs(moves[1] + 1.0) > 0.1
    assert moves[3:] == pytest.approx([-1.0, -1.0], rel=1e-6)


def test_a_rule_that_reads_what_is_not_measured_is_refused() -> None:
    with pytest.raises(TypeError, match=r"SpreadSGD reads the Spread of an estimate, but Central .* Use OneSided"):
        Method(Central(), Rademacher(), SpreadSGD())


def test_groups_move_at_their_own_rates() -> None:
    a, b = nn.Parameter(torch.ones(2, dtype=torch.float64)), nn.Parameter(torch.ones(2, dtype=torch.float64))
    store = Store({"a": a, "b": b}, groups={"b": 1})
    store.require({"g": 1.0})
    store.iterate([Rate(0.1, 0.5), Rate(0.25, 0.0)], 0).step_(Vector(((Slot("g"), 2.0),)))
    np.testing.assert_allclose(a.detach(), 0.95 - 0.2, rtol=1e-15)
    np.testing.assert_allclose(b.detach(), 1.0 - 0.5, rtol=1e-15)
    with pytest.raises(ValueError, match="leaves of group 1, got 1 rates"):
        store.iterate([Rate(0.1)], 0)


STILL = [SGD(), Momentum(), ReplayMomentum(), Adam(), AMSGrad(), Sign(), Lion(), NormalizedLion(), Optimistic()]
STILL += [ReplayAdam(), Proximal(L1(0.3)), Proximal(GroupL2(0.3)), FrankWolfe(L1Ball(9.0))]


@pytest.mark.parametrize("rule", STILL, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_rate_of_zero_changes_no_bit(rule: Any, dtype: torch.dtype) -> None:
    """Not even the sign of a zero."""
    p = nn.Parameter(torch.tensor([[-0.0, 0.0, 1.5, -2.0, 1e-30]]).to(dtype))
    before = p.detach().clone().view(torch.uint8)
    store = Store({"p": p})
    store.require(rule.slots)
    for coef in (3.0, -3.0):
        estimate = Estimate(Vector(((Noise(Kind.SIGN, 4), coef),)), 0.0, [], None)
        rule.apply(store.iterate([Rate(0.0, 0.4)], 0), estimate, {})
    assert torch.equal(p.detach().view(torch.uint8), before)


def test_a_run_counts_what_moved() -> None:
    """`Record.moved` is the fraction of weights whose bits changed."""
    x = torch.zeros(1000, dtype=torch.float64)
    run = Run(Store({"x": x}), Method(Central(), Rademacher(), SGD(), lr=1.0), 0)
    (plus, minus) = run.ask()
    assert plus.at
    assert minus.at
    record = run.tell([1.0, 0.0])
    assert record is not None
    assert record.moved == 1.0
    run.ask()
    still = run.tell([1.0, 1.0])
    assert still is not None
    assert still.moved == 0.0
