"""Our exponential maps, retractions, transports and distances against those of geoopt and pymanopt; the adapters."""

from __future__ import annotations

import importlib
import itertools
import sys
import warnings

import numpy as np
import pymanopt.manifolds as pymanopt
import pytest
import torch

from zograd import AskTell, check_space
from zograd.core.run import Method
from zograd.estimators import Central
from zograd.laws import Gaussian
from zograd.rules import SGD
from zograd.spaces import (
    Oblique,
    PositiveOrthant,
    Simplex,
    Sphere,
    Stiefel,
    from_geoopt,
    from_pymanopt,
    riemannian_gradient,
)

with warnings.catch_warnings():  # it compiles with torch.jit
    warnings.simplefilter("ignore", DeprecationWarning)
    import geoopt

F64 = torch.float64


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(ours: torch.Tensor, theirs) -> None:
    theirs = torch.as_tensor(theirs).to(ours)
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=1e-9, atol=1e-11)


def points(space, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, y near enough for a unique geodesic, and tangents u, w at x."""
    x = random(*shape, seed=1)
    x = {
        PositiveOrthant: lambda: x.exp(),
        Simplex: lambda: space.total * x.softmax(-1) if isinstance(space, Simplex) else x,
        Sphere: lambda: space.radius * x / x.norm(dim=-1, keepdim=True),
        Oblique: lambda: x / x.norm(dim=0),
        Stiefel: lambda: torch.linalg.qr(x).Q.contiguous(),
    }[type(space)]()
    u, w = (space.lift_(0.4 * random(*shape, seed=s), x, {}) for s in (2, 3))
    return x, space.move_(x.clone(), u.clone()), u, w


def test_the_orthant_is_pymanopts_positive() -> None:
    ours, theirs = PositiveOrthant(), pymanopt.Positive(3, 2, use_parallel_transport=True)
    x, y, u, w = points(ours, (3, 2))
    n = [a.numpy() for a in (x, y, u, w)]
    close(ours.exp(x, u), theirs.exp(n[0], n[2]))
    close(ours.log(x, y), theirs.log(n[0], n[1]))
    close(ours.dist(x, y), theirs.dist(n[0], n[1]))
    close(ours.transport(x, y, w), theirs.transport(n[0], n[1], n[3]))
    close(ours.inner(x, u, w, {}), theirs.inner_product(n[0], n[2], n[3]))
    close(riemannian_gradient(ours, x, w), theirs.euclidean_to_riemannian_gradient(n[0], n[3]))


def test_spheres_are_geoopts() -> None:
    ours, theirs = Sphere(), geoopt.Sphere()
    x, y, u, w = points(ours, (4, 5))
    close(ours.exp(x, u), theirs.expmap(x, u))
    close(ours.log(x, y), theirs.logmap(x, y))
    close(ours.dist(x, y), theirs.dist(x, y))
    carried = w  # theirs projects, which in many small steps is parallel transport
    for a, b in itertools.pairwise(theirs.expmap(x, t * u) for t in torch.linspace(0.0, 1.0, 501, dtype=F64)):
        carried = theirs.transp(a, b, carried)
    torch.testing.assert_close(ours.transport(x, y, w), carried, rtol=1e-3, atol=1e-3)
    close(riemannian_gradient(ours, x, w + x), theirs.egrad2rgrad(x, w + x))


def test_the_oblique_manifold_is_pymanopts() -> None:
    ours, theirs = Oblique(), pymanopt.Oblique(5, 4)
    x, y, u, w = points(ours, (5, 4))
    n = [a.numpy() for a in (x, y, u, w)]
    close(ours.exp(x, u), theirs.exp(n[0], n[2]))
    close(ours.log(x, y), theirs.log(n[0], n[1]))
    close(ours.dist(x, y), theirs.dist(n[0], n[1]))
    close(riemannian_gradient(ours, x, x + w), theirs.euclidean_to_riemannian_gradient(n[0], n[0] + n[3]))


@pytest.mark.parametrize("retraction", ["qr", "polar"])
def test_stiefel_is_pymanopts_and_geoopts(retraction: str) -> None:
    ours, theirs, also = Stiefel(retraction), pymanopt.Stiefel(6, 3, retraction=retraction), geoopt.EuclideanStiefel()
    x, _, u, w = points(ours, (6, 3))
    n = [a.numpy() for a in (x, u, w)]
    close(ours.move_(x.clone(), u.clone()), theirs.retraction(n[0], n[1]))
    close(ours.exp(x, u), theirs.exp(n[0], n[1]))
    close(ours.exp(x, u), also.expmap(x, u))
    if retraction == "qr":
        close(ours.move_(x.clone(), u.clone()), also.retr(x, u))
    close(riemannian_gradient(ours, x, x + w), theirs.euclidean_to_riemannian_gradient(n[0], n[0] + n[2]))


@pytest.mark.parametrize("total", [1.0, 3.0])
def test_fisher_rao_is_the_sphere_of_twice_the_roots(total: float) -> None:
    ours, theirs = Simplex("fisher-rao", total=total), Sphere(2 * total**0.5)
    p, q, u, w = points(ours, (3, 4))
    x, y, du, dw = 2 * p.sqrt(), 2 * q.sqrt(), u / p.sqrt(), w / p.sqrt()
    close(ours.exp(p, u), theirs.exp(x, du) ** 2 / 4)
    close(ours.log(p, q), p.sqrt() * theirs.log(x, y))
    close(ours.dist(p, q), theirs.dist(x, y))
    close(ours.transport(p, q, w), q.sqrt() * theirs.transport(x, y, dw))
    close(ours.inner(p, u, w, {}), theirs.inner(x, du, dw, {}))
    unit = geoopt.Sphere()
    close(
        ours.dist(p, q), 2 * total**0.5 * unit.dist(x / x.norm(dim=-1, keepdim=True), y / y.norm(dim=-1, keepdim=True))
    )


def test_log_ratio_is_euclidean_in_centred_logs() -> None:
    """The isometry y = log p - mean log p."""
    ours = Simplex(total=2.0)
    p, q, u, w = points(ours, (3, 4))

    def clr(p: torch.Tensor) -> torch.Tensor:
        return p.log() - p.log().mean(-1, keepdim=True)

    close(ours.dist(p, q), (clr(q) - clr(p)).norm(dim=-1))

    def dclr(p: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return v / p - (v / p).mean(-1, keepdim=True)

    du, dw = dclr(p, u), dclr(p, w)
    close(clr(ours.exp(p, u)), clr(p) + du)
    close(ours.inner(p, u, w, {}), (du * dw).sum())
    close(dclr(q, ours.transport(p, q, w)), dw)
    close(ours.exp(p, ours.log(p, q)), q)


# ---- adapters --------------------------------------------------------------------------------------------------------

SPD = torch.diag(torch.tensor([1.0, 2.0, 9.0], dtype=F64)) + 0.3
ORTHONORMAL = torch.linalg.qr(random(5, 2)).Q.contiguous()
ADAPTED = [
    (from_geoopt(geoopt.Sphere()), ORTHONORMAL[:, 0].clone()),
    (from_geoopt(geoopt.Sphere(), embedded=True), ORTHONORMAL[:, 0].clone()),
    (from_geoopt(geoopt.EuclideanStiefel()), ORTHONORMAL),
    (from_geoopt(geoopt.SymmetricPositiveDefinite()), SPD),
    (from_geoopt(geoopt.PoincareBall()), torch.tensor([0.3, -0.5, 0.1], dtype=F64)),
    (from_pymanopt(pymanopt.Sphere(5)), ORTHONORMAL[:, 0].clone()),
    (from_pymanopt(pymanopt.Stiefel(5, 2)), ORTHONORMAL),
    (from_pymanopt(pymanopt.Positive(3, 1)), torch.tensor([[0.1], [1.0], [5.0]], dtype=F64)),
    (from_pymanopt(pymanopt.SymmetricPositiveDefinite(3)), SPD),
]


@pytest.mark.parametrize(("space", "x"), ADAPTED, ids=lambda v: type(getattr(v, "manifold", None)).__name__)
def test_adapted_manifolds_obey_the_laws(space, x) -> None:
    """But for moves of any length, which their own retractions do not promise."""
    report = check_space(space, x, draws=100)
    bad = [c for c in report.checks if not c.ok and "leave the space" not in c.name]
    assert not bad, report


def test_projected_noise_is_not_white_in_a_metric_that_is_not_the_ambient_one() -> None:
    """Which is what geoopt and pymanopt offer for random tangents; the adapter corrects it."""
    report = check_space(from_geoopt(geoopt.SymmetricPositiveDefinite(), embedded=True), SPD, draws=100)
    assert not report["lifted noise is isotropic in the metric: |G G - G|"].ok


def test_an_adapted_space_runs_and_agrees_with_ours() -> None:
    """The leading eigenvector by ZO on the sphere: ours, geoopt's and pymanopt's reach it."""
    A = np.diag([1.0, 2.0, 3.0, 6.0])
    x0 = np.full(4, 0.5)

    def run(space) -> np.ndarray:
        loop = AskTell(x0, Method(Central(2), Gaussian(), SGD(), space=space, mu=1e-4, lr=2e-2), seed=0)
        for _ in range(250):
            loop.tell([-float(x @ A @ x) for x in loop.ask()])
        return loop.x

    ours = run(Sphere())
    assert abs(ours[3]) > 0.999
    for space in (from_geoopt(geoopt.SphereExact(), embedded=True), from_pymanopt(pymanopt.Sphere(4), embedded=True)):
        other = run(space)
        assert abs(other[3]) > 0.999
        assert np.linalg.norm(other) == pytest.approx(1.0)


def test_the_colift_of_an_adapter_is_the_transpose() -> None:
    space = from_geoopt(geoopt.SymmetricPositiveDefinite())
    z, w = random(3, 3, seed=1), random(3, 3, seed=2)
    lifted = space.lift_(z.clone(), SPD, {})
    assert float((lifted * w).sum()) == pytest.approx(float((z * space.colift_(w.clone(), SPD, {})).sum()))


@pytest.mark.parametrize(("adapt", "package"), [(from_geoopt, "geoopt"), (from_pymanopt, "pymanopt")])
def test_what_is_not_a_manifold_or_not_installed_is_named(adapt, package: str, monkeypatch) -> None:
    with pytest.raises(TypeError, match=f"from_{package} takes a manifold of {package}, got Sphere"):
        adapt(Sphere())
    for name in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    real = importlib.import_module

    def missing(name: str, *rest):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr("zograd.spaces.adapters.importlib.import_module", missing)
    with pytest.raises(ImportError, match=rf"{package} is not installed; pip install zograd\[manifolds\]"):
        adapt(Sphere())
