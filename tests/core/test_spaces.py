"""Laws of single spaces: symmetries, equivalent runs, what bounds do, products, and that `check_space` can fail."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from places import inside, two_walls

from zograd import AskTell, check_space
from zograd.core.run import Method, Run
from zograd.estimators import Central
from zograd.laws import Gaussian, Rademacher
from zograd.oracles import sequential
from zograd.rules import SGD, Adam, Momentum
from zograd.spaces import (
    Box,
    Domain,
    Euclidean,
    Landing,
    Oblique,
    Polytope,
    PositiveOrthant,
    Product,
    Simplex,
    Space,
    Sphere,
    Stiefel,
    riemannian_gradient,
)
from zograd.spaces.sampling import tangents
from zograd.stores import Store

F64 = torch.float64
RULES = pytest.mark.parametrize("rule", [SGD(), Momentum(), Adam()], ids=lambda r: type(r).__name__)


def run(f, x0, space, rule=None, steps: int = 60, mu: float = 1e-3, lr: float = 3e-2, seed: int = 4, n: int = 1):
    method = Method(Central(n), Gaussian(), rule or SGD(), space=space, mu=mu, lr=lr)
    loop = AskTell(x0, method, seed=seed)
    for _ in range(steps):
        loop.tell([f(x) for x in loop.ask()])
    return loop.x


# ---- sampling (algorithms of 5.2) ------------------------------------------------------------------------------------

A = np.diag([1.0, 4.0, 25.0, 100.0])


def isotropy(v: np.ndarray) -> np.ndarray:
    """The diagonal of E[v v^T] A: ones where v is isotropic in the metric A."""
    return np.diag(v.T @ v / len(v) @ A)


def test_tangents_by_the_root_are_isotropic_and_by_rejection_are_not() -> None:
    root = tangents(A, 400_000, np.random.default_rng(0))
    assert np.abs(isotropy(root) - 1).max() < 0.01
    np.testing.assert_allclose(np.einsum("ni,ij,nj->n", root, A, root), 4.0)
    with pytest.warns(UserWarning, match="not isotropic in the metric"):
        kept = tangents(A, 400_000, np.random.default_rng(0), how="rejection")
    np.testing.assert_allclose(isotropy(kept), [0.81, 0.84, 0.99, 1.36], atol=0.01)
    np.testing.assert_allclose(np.einsum("ni,ij,nj->n", kept, A, kept), 4.0)


def test_tangents_in_a_metric_that_is_not_diagonal() -> None:
    Q = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4))).Q
    v = tangents(Q @ A @ Q.T, 200_000, np.random.default_rng(2))
    np.testing.assert_allclose(v.T @ v / len(v), Q @ np.diag(1 / np.diag(A)) @ Q.T, atol=0.01)


@pytest.mark.parametrize(
    ("metric", "how", "why"),
    [
        (np.ones((2, 3)), "root", "a symmetric matrix, got shape"),
        (-np.eye(2), "root", "positive definite, got the eigenvalue -1"),
        (np.eye(2), "ball", "'root' or 'rejection', got 'ball'"),
    ],
)
def test_tangents_refuse_what_is_no_metric(metric, how, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        tangents(metric, 3, np.random.default_rng(0), how=how)


# ---- gradients -------------------------------------------------------------------------------------------------------


def test_gradients_are_those_of_the_formulas() -> None:
    """Orthant: s^2 df. Log-ratio: frame p_i (df_i - sum_j p_j df_j). Sphere and Stiefel: projections of df."""
    s, df = inside(PositiveOrthant(), 1, (5,)), torch.linspace(-1.0, 2.0, 5, dtype=F64)
    torch.testing.assert_close(riemannian_gradient(PositiveOrthant(), s, df), s**2 * df)
    p = inside(Simplex(), 2, (5,))
    torch.testing.assert_close(Simplex().colift_(df.clone(), p, {}), p * (df - p @ df))
    J = torch.diag(p) - torch.outer(p, p)
    torch.testing.assert_close(riemannian_gradient(Simplex(), p, df), J @ J @ df)
    torch.testing.assert_close(riemannian_gradient(Simplex("fisher-rao"), p, df), J @ df)
    h = 1 + (p**-2).sum()
    torch.testing.assert_close(riemannian_gradient(Simplex("conformal"), p, df), (df - df.mean()) / h)
    x = inside(Sphere(), 3, (5,))
    torch.testing.assert_close(riemannian_gradient(Sphere(), x, df), df - x * (x @ df))


@pytest.mark.parametrize("space", [PositiveOrthant(), Simplex(), Simplex("fisher-rao"), Simplex("conformal")], ids=str)
def test_two_point_estimates_in_frame_coordinates_are_unbiased(space) -> None:
    """The mean of c z over Rademacher z is lift^T df within 2 standard errors, and no probe of size 5 is outside."""
    x, w = inside(space, 4, (6,)), torch.linspace(-1.0, 2.0, 6, dtype=F64)
    mu, n = 1e-4, 40_000
    z = torch.randint(0, 2, (n, 6), generator=torch.Generator().manual_seed(0)).to(F64) * 2 - 1
    v = space.lift_(z.clone(), x.expand(n, 6), {})
    plus, minus = (space.move_(x.repeat(n, 1), s * mu * v) for s in (1, -1))
    c = ((plus**2 @ w) - (minus**2 @ w)) / (2 * mu)
    estimates = c[:, None] * z
    error = (estimates.mean(0) - space.colift_(2 * w * x, x, {})).norm()
    assert error < 2 * math.sqrt(float(estimates.var(0).sum()) / n)
    assert space.explain(space.move_(x.repeat(n, 1), 5.0 * v)) is None


# ---- equivalent runs -------------------------------------------------------------------------------------------------


@RULES
def test_a_rule_on_the_simplex_is_the_rule_on_softmax_parameters(rule) -> None:
    """log-ratio: p = softmax(y) turns one run into the other, for several simplices at once."""
    y0 = np.linspace(-1.0, 1.0, 12).reshape(3, 4)

    def softmax(y: np.ndarray) -> np.ndarray:
        e = np.exp(y)
        return e / e.sum(-1, keepdims=True)

    def f(p: np.ndarray) -> float:
        return float(np.sum((p - [0.1, 0.2, 0.3, 0.4]) ** 2 * [[1.0], [2.0], [3.0]]) + p[0, 0] * p[2, 1])

    on_p = run(f, softmax(y0), Simplex(), rule)
    on_y = run(lambda y: f(softmax(y)), y0, Euclidean(), rule)
    assert np.abs(on_p - softmax(y0)).max() > 1e-2
    np.testing.assert_allclose(on_p, softmax(on_y), rtol=1e-6)


@RULES
def test_a_rule_in_a_box_is_the_rule_on_logits(rule) -> None:
    """With one bound infinite on the log of the distance to the other, without bounds on x."""
    space = Box((-1.0, 0.0, -math.inf, -math.inf), (2.0, math.inf, 1.0, math.inf))
    y0 = np.array([0.3, -0.2, 0.5, 0.1])

    def x_of(y: np.ndarray) -> np.ndarray:
        return np.array([-1 + 3 / (1 + np.exp(-y[0])), np.exp(y[1]), 1 - np.exp(-y[2]), y[3]])

    def f(x: np.ndarray) -> float:
        return float(np.sum((x - [0.5, 0.7, -0.2, 0.4]) ** 2) + x[0] * x[1] - x[2] * x[3])

    in_x, in_y = run(f, x_of(y0), space, rule), run(lambda y: f(x_of(y)), y0, Euclidean(), rule)
    np.testing.assert_allclose(in_x, x_of(in_y), rtol=1e-6)


def test_dikin_without_ridge_forgets_the_units_of_x() -> None:
    """x = D u with a diagonal D: the polytope in u gives the same trajectory (its metric is diagonal too)."""
    walls = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    D = np.array([0.01, 30.0])

    def f(u: np.ndarray) -> float:
        return float((u[0] - 0.5) ** 2 + 2 * (u[1] + 0.3) ** 2 + u[0] * u[1])

    plain = run(f, np.zeros(2), Polytope(walls, np.ones(4), ridge=0.0))
    scaled = run(lambda x: f(x / D), np.zeros(2), Polytope(walls / D, np.ones(4), ridge=0.0))
    assert np.abs(plain).min() > 1e-2
    np.testing.assert_allclose(scaled / D, plain, rtol=1e-6)


# ---- near the edge ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("times", [0.5, 1.0, 2.0, 1e3])
def test_a_conformal_move_on_the_orthant_is_cut_to_length_rho(rho: float, times: float) -> None:
    """|v|_x = times rho with |v|_x = sqrt(1 + sum x_i^-2) |v|: v itself up to length rho, and that length beyond."""
    x = torch.tensor([0.3, 2.0, 1.1], dtype=torch.float64)
    v = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    root = math.sqrt(1 + float(x.pow(-2).sum()))
    v *= times * rho / (root * float(v.norm()))
    after = PositiveOrthant(metric="conformal", rho=rho).move_(x.clone(), v.clone())
    assert torch.allclose(after - x, v * min(1.0, 1.0 / times), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("space", "x0"),
    [
        (PositiveOrthant("conformal"), [1.0, 1.0]),
        (Polytope([[-1.0, 0.0], [0.0, -1.0]], [0.0, 0.0]), [1.0, 1.0]),
        (Polytope([[-1.0, 0.0], [0.0, -1.0]], [0.0, 0.0], metric="conformal"), [1.0, 1.0]),
        (PositiveOrthant(), [1.0, 1.0]),
        (Box(0.0, 5.0), [1.0, 1.0]),
    ],
    ids=str,
)
def test_a_minimum_outside_is_approached_and_not_crossed(space, x0) -> None:
    """f pulls towards (-1, 2): x_0 falls towards its wall, x_1 finds 2, no point is outside."""
    seen = []

    def f(x: np.ndarray) -> float:
        seen.append(x.copy())
        return float((x[0] + 1) ** 2 + (x[1] - 2) ** 2)

    x = run(f, np.array(x0), space, steps=700, lr=4e-2, mu=1e-3)
    assert np.min(seen) > 0
    assert x[0] < 0.12
    assert abs(x[1] - 2) < (0.6 if getattr(space, "metric", "") == "conformal" else 0.2)


def test_one_small_slack_freezes_a_conformal_leaf_but_not_a_dikin_one() -> None:
    """The reason that Dikin is the default of domains."""
    walls, b, x = -np.eye(2), np.zeros(2), torch.tensor([1e-3, 1.0], dtype=F64)
    lifted = [Polytope(walls, b, metric=m).lift_(torch.ones(2, dtype=F64), x, {}) for m in ("dikin", "conformal")]
    assert float(lifted[0][1]) == pytest.approx(2**-0.5)
    assert float(lifted[1][1]) == pytest.approx(1e-3, rel=1e-3)


def conformal(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """h = 1 + sum_i x_i^-2, and the gradient and Hessian of phi = log(h) / 2."""
    h, g, H = 1 + np.sum(x**-2.0), -2 * x**-3.0, np.diag(6 * x**-4.0)
    return h, g / (2 * h), (H / h - np.outer(g, g) / h**2) / 2


def test_conformal_geodesics_aimed_at_the_wall_do_not_reach_it() -> None:
    """x'' = -2 (grad phi . x') x' + |x'|^2 grad phi, RK4: Euclidean endpoint -1.7, inside; the speed is conserved."""
    x, v = np.array([0.3, 1.0, 0.8]), np.array([-2.0, 0.2, 0.1])
    h0 = PositiveOrthant("conformal").inner(*(torch.from_numpy(a) for a in (x, v, v)), {})
    assert (x + v).min() == pytest.approx(-1.7)

    def rate(x: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slope = conformal(x)[1]
        return v, -2 * (slope @ v) * v + (v @ v) * slope

    t = 1 / 4000
    for _ in range(4000):
        a = rate(x, v)
        b = rate(x + t / 2 * a[0], v + t / 2 * a[1])
        c = rate(x + t / 2 * b[0], v + t / 2 * b[1])
        d = rate(x + t * c[0], v + t * c[1])
        x, v = (y + t / 6 * (p + 2 * q + 2 * r + s) for y, p, q, r, s in zip((x, v), a, b, c, d, strict=True))
    assert 0 < x.min() < 1e-2
    assert conformal(x)[0] * (v @ v) == pytest.approx(float(h0), rel=1e-9)


@pytest.mark.parametrize("where", ["orthant", "simplex"])
def test_the_conformal_curvature_lies_where_it_is_stated(where: str) -> None:
    """K(u, v) = -(H(u, u) + H(v, v) - (dphi u)^2 - (dphi v)^2 + |dphi|^2) / h, u, v orthonormal in the flat metric."""
    rng, d = np.random.default_rng(0), 4
    basis = np.eye(d) if where == "orthant" else np.linalg.svd(np.ones((1, d)))[2][1:].T
    found = []
    for _ in range(2000):
        x = np.exp(rng.uniform(-8, 2, size=d))
        h, slope, H = conformal(x if where == "orthant" else x / x.sum())
        u, v = np.linalg.qr(basis @ rng.normal(size=(basis.shape[1], 2))).Q.T
        along = basis.T @ slope
        found.append(-(u @ H @ u + v @ H @ v - (slope @ u) ** 2 - (slope @ v) ** 2 + along @ along) / h)
    assert min(found) >= -1 - 1e-9
    assert max(found) <= 0


def test_fisher_rao_geodesics_are_reflected_at_the_wall() -> None:
    """Straight at a wall, from 0.04 at twice the distance to it: back at 0.04."""
    space, p = Simplex("fisher-rao"), torch.tensor([0.04, 0.96], dtype=F64)
    angle = 2 * math.asin(0.2)
    v = torch.tensor([-1.0, 1.0], dtype=F64) * math.sqrt(0.04 * 0.96) * angle * 2
    torch.testing.assert_close(space.exp(p, v), p)
    assert float(space.exp(p, v / 2)[0]) < 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("metric", ["log-ratio", "fisher-rao", "conformal"])
def test_the_simplex_survives_its_vertices(metric: str, dtype) -> None:
    """From elements of the smallest size, and after moves of any length: inside, finite, sums kept."""
    space = Simplex(metric)
    x = torch.tensor([[1.0, 1e-30, 1e-37], [0.5, 0.5, torch.finfo(dtype).tiny]], dtype=dtype)
    g = torch.Generator().manual_seed(0)
    for size in (1e-3, 1.0, 100.0, 1e4):
        x = space.move_(x, space.lift_(size * torch.randn(x.shape, generator=g, dtype=dtype), x, {}))
        assert space.explain(x) is None


def test_a_domain_that_is_not_convex_is_not_left() -> None:
    """Between two spheres a straight move inward from the outer one would cross the hole's wall: it is halved."""

    def ring(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([4.0 - x.square().sum(), x.square().sum() - 1.0, (x[0] + 3.0) * 100.0])

    space, x = Domain(ring, rho=0.9), torch.tensor([1.05, 0.0], dtype=F64)
    for size in (0.01, 0.1, 1.0, 10.0):
        v = space.lift_(torch.tensor([-size, 0.3], dtype=F64), x, {})
        assert space.explain(space.move_(x.clone(), v)) is None


def test_a_jacobian_given_by_hand_is_that_of_autograd() -> None:
    def jacobian(x: torch.Tensor) -> torch.Tensor:
        first = torch.zeros_like(x)
        first[0] = 1.0
        return torch.stack([-2 * x, first])

    x, z = torch.tensor([0.2, 0.5, -0.1], dtype=F64), torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    by_hand, by_autograd = Domain(two_walls, jacobian), Domain(two_walls)
    torch.testing.assert_close(by_hand.lift_(z.clone(), x, {}), by_autograd.lift_(z.clone(), x, {}))


# ---- matrices --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [Stiefel(), Stiefel("polar"), Landing()], ids=str)
def test_the_trace_problem_on_stiefel(space) -> None:
    """max tr(X^T A X) over orthonormal (6, 2): the sum of the two largest eigenvalues, within 1 %."""
    A = np.diag([1.0, 2.0, 3.0, 4.0, 8.0, 10.0])
    x = run(
        lambda x: -float(np.trace(x.T @ A @ x)),
        inside(Stiefel(), 0, (6, 2)).numpy(),
        space,
        steps=400,
        lr=1e-2,
        mu=1e-4,
        n=2,
    )
    assert np.trace(x.T @ A @ x) == pytest.approx(18.0, rel=0.01)
    np.testing.assert_allclose(x.T @ x, np.eye(2), atol=1e-3)


def test_landing_pulls_back_what_moves_push_off() -> None:
    """Without the pull |X^T X - I| grows; with it, moves of length 0.3 leave at most 3/4 (0.3^2)^2 or so."""
    space, x = Landing(), inside(Stiefel(), 1, (8, 3))
    free, g = x.clone(), torch.Generator().manual_seed(0)
    eye = torch.eye(3, dtype=F64)
    for _ in range(200):
        z = torch.randn(8, 3, generator=g, dtype=F64)
        v = space.lift_(z, x, {})
        v *= 0.3 / v.norm()
        free += space.lift_(v.clone(), free, {})
        x = space.move_(x, v)
    assert (x.mT @ x - eye).norm() < 0.01
    assert not (free.mT @ free - eye).norm() < 1.0


# ---- products --------------------------------------------------------------------------------------------------------


def test_leaves_of_a_product_move_in_their_own_spaces() -> None:
    """And each as it would alone, since directions do not depend on the others' spaces."""
    space = Product({"scale*": PositiveOrthant(), "mix": Simplex(), "*": Euclidean()})
    leaves = {
        "scale.0": torch.tensor([0.5, 2.0], dtype=F64),
        "mix": torch.full((2, 3), 1 / 3, dtype=F64),
        "bias": torch.tensor([0.1, -0.1], dtype=F64),
    }

    def loss() -> float:
        scale, mix, bias = (leaves[name].mul(1.0) for name in leaves)
        return float((scale + bias).square().sum() + (mix * torch.tensor([1.0, 2.0, 3.0])).sum())

    method = Method(Central(1), Rademacher(), Momentum(), space=space, mu=1e-3, lr=1e-2)
    before = {name: x.clone() for name, x in leaves.items()}
    train = Run(Store(leaves, space=space), method, 0)
    first, records = loss(), [train.step(sequential(loss)) for _ in range(60)]
    assert loss() < first - 0.1
    for name, x in leaves.items():
        assert space.of(name).explain(x) is None
        assert not torch.equal(x, before[name])
    Run(Store(before, space=space), method, 0).replay(records)
    assert all(torch.equal(x, before[name]) for name, x in leaves.items())


def test_a_product_says_what_is_wrong() -> None:
    space = Product({"scale": PositiveOrthant(), "mix?": Simplex()})
    with pytest.raises(ValueError, match="no part of the product names the leaf 'bias': it has 'scale', 'mix\\?'"):
        Store({"bias": torch.ones(2)}, space=space)
    with pytest.raises(ValueError, match="'mix1' is not in Simplex"):
        Store({"mix1": torch.ones(2)}, space=space)
    with pytest.raises(ValueError, match="needs parts"):
        Product({})
    with pytest.raises(ValueError, match="a product in a product"):
        Product({"*": space})
    with pytest.raises(TypeError, match=r"check_space\(product.of"):
        check_space(space)
    for call in (
        lambda: space.lift_(torch.ones(2), torch.ones(2), {}),
        lambda: space.move_(torch.ones(2), torch.ones(2)),
        lambda: space.explain(torch.ones(2)),
    ):
        with pytest.raises(TypeError, match=r"product.of\(name\)"):
            call()
    with pytest.raises(ValueError, match="pulls towards 0"):
        Method(Central(), Rademacher(), SGD(), space=space, weight_decay=0.1)
    assert Product({"*": Euclidean()}).flat
    assert Product({"*": Euclidean()}).curvature == 0.0
    assert Product({"a": Sphere(), "*": Euclidean()}).curvature == "0.0; 1.0"
    assert not Product({"a": Simplex("fisher-rao"), "*": Euclidean()}).complete


@dataclass(frozen=True)
class Metric(Euclidean):
    """A space with a slot."""

    value: float = 0.0

    @property
    def slots(self) -> dict[str, float]:
        return {"metric": self.value}


def test_slots_of_parts_are_merged() -> None:
    assert Product({"a": Metric(1.0), "b": Metric(1.0), "*": Euclidean()}).slots == {"metric": 1.0}
    with pytest.raises(ValueError, match="slot 'metric' with other initial values"):
        Product({"a": Metric(1.0), "b": Metric(2.0)})


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: PositiveOrthant("euclidean"), r"rules.Proximal\(sets.NonNegative\(\)\)"),
        (lambda: PositiveOrthant("conformal", rho=1.0), r"rho must lie in \(0, 1\)"),
        (lambda: Simplex("euclidean"), "'log-ratio', 'conformal', 'fisher-rao', got 'euclidean'"),
        (lambda: Simplex(total=0.0), "total > 0"),
        (lambda: Simplex(rho=0.0), r"rho must lie in \(0, 1\)"),
        (lambda: Box(1.0, 1.0), "low < high, got low=1, high=1"),
        (lambda: Box((0.0, 1.0), (1.0, 2.0, 3.0)), "low has 2 bounds and high 3"),
        (lambda: Domain(two_walls, metric="log"), "'dikin', 'conformal', got 'log'"),
        (lambda: Domain(two_walls, rho=1.5), r"rho must lie in \(0, 1\)"),
        (lambda: Domain(two_walls, ridge=-1.0), "ridge must be >= 0"),
        (lambda: Polytope([[1.0, 0.0]], [1.0, 2.0]), r"got \(1, 2\) and \(2,\)"),
        (lambda: Sphere(0.0), "radius > 0"),
        (lambda: Oblique(-1.0), "radius > 0"),
        (lambda: Stiefel("cayley"), "'qr' or 'polar', got 'cayley'"),
        (lambda: Landing(pull=1.0), "pull must lie"),
        (lambda: Landing(rho=0.9), "rho must lie"),
        (lambda: Simplex("conformal").log(torch.ones(2) / 2, torch.ones(2) / 2), "no closed form of log"),
        (lambda: PositiveOrthant("conformal").dist(torch.ones(2), torch.ones(2)), "no closed form of dist"),
    ],
)
def test_what_makes_no_space_is_refused(make, why: str) -> None:
    with pytest.raises((ValueError, NotImplementedError), match=why):
        make()


def test_walls_that_leave_a_direction_free_need_a_ridge() -> None:
    space = Polytope([[1.0, 0.0]], [1.0], ridge=0.0)
    with pytest.raises(ValueError, match=r"ridge=1\.0"):
        space.lift_(torch.ones(2, dtype=F64), torch.zeros(2, dtype=F64), {})


# ---- check_space can fail --------------------------------------------------------------------------------------------


class Additive(PositiveOrthant):
    """The orthant with the retraction x + v, which leaves it."""

    def move_(self, x, v):
        return x.add_(v)


class Ambient(PositiveOrthant):
    """Noise that is white in another metric than it claims."""

    def lift_(self, z, x, slots):
        return z.mul_(x.sqrt())


class Clipped(PositiveOrthant):
    """A lift that is not linear."""

    def lift_(self, z, x, slots):
        return z.clamp_(-1.0, 1.0).mul_(x)


class Fresh(PositiveOrthant):
    """A lift that does not work in place."""

    def lift_(self, z, x, slots):
        return z * x


class Meddling(PositiveOrthant):
    """A lift that changes the point."""

    def lift_(self, z, x, slots):
        return z.mul_(x.mul_(1.001))


class Short(PositiveOrthant):
    """A move that is not of first order."""

    def move_(self, x, v):
        return x.mul_((0.9 * v / x).exp_())


class Restless(PositiveOrthant):
    """A move that moves by 0 as well."""

    def move_(self, x, v):
        return x.mul_((v / x).exp_()).mul_(1.001)


@pytest.mark.parametrize(
    ("space", "law"),
    [
        (Additive(), "moves that leave the space"),
        (Ambient(), "isotropic in the metric"),
        (Clipped(), "lift is linear"),
        (Fresh(), "return what they overwrote"),
        (Meddling(), "leaves x alone"),
        (Short(), "2 - order of"),
        (Short(), "gradient estimates"),
        (Restless(), "the zero vector moves nothing"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_check_space_finds_what_is_wrong(space, law: str) -> None:
    report = check_space(space, torch.linspace(0.3, 2.0, 6, dtype=F64), draws=20_000)
    bad = [check for check in report.checks if not check.ok]
    assert any(law in check.name for check in bad), report
    assert not report.ok
    with pytest.raises(AssertionError, match="FAIL"):
        report.raise_()


def test_check_space_passes_a_user_s_own_space_and_prints_it() -> None:
    @dataclass(frozen=True)
    class Circle(Space):
        """Points on circles, moved by angles."""

        unit = "row"

        def lift_(self, z, x, slots):
            turned = torch.stack([-x[..., 1], x[..., 0]], -1)
            return z.copy_(turned * (z * turned).sum(-1, keepdim=True))

        def move_(self, x, v):
            angle = (v * torch.stack([-x[..., 1], x[..., 0]], -1)).sum(-1, keepdim=True)
            turned = torch.stack([-x[..., 1], x[..., 0]], -1)
            return x.copy_(x * angle.cos() + turned * angle.sin())

        def inner(self, x, u, v, slots):
            return (u * v).sum()

        def explain(self, x):
            return None if float((x.norm(dim=-1) - 1).abs().max()) < 1e-6 else "a point has not norm 1"

    report = check_space(Circle(), torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=F64), draws=20_000)
    assert report.ok
    assert report.raise_() is report
    assert str(report).count("ok  ") == len(report.checks)
    with pytest.raises(ValueError, match="a point has not norm 1"):
        check_space(Circle(), torch.ones(2, dtype=F64))
    with pytest.raises(ValueError, match="no point of Simplex is known; give one"):
        check_space(Simplex(total=5.0))
    for space in (Euclidean(), PositiveOrthant(), Box(), Sphere(), Stiefel(), Simplex()):
        assert check_space(space, draws=2000).ok
