"""`zo.black_box`: a program without derivatives inside of a torch network, against Jacobians and autograd."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import zograd as zo

D, M = 5, 3


def linear(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((M, D))


def pulled(box: zo.api.black_box.BlackBox, m: torch.Tensor, a: np.ndarray) -> np.ndarray:
    m = m.clone().requires_grad_(True)
    box(m).backward(torch.from_numpy(a).to(m.dtype))
    assert m.grad is not None
    return m.grad.numpy().copy()


def test_the_mean_of_the_estimate_is_the_transposed_jacobian() -> None:
    """Each entry within 4 standard errors, of a linear program, whose estimate has no bias."""
    A, a = linear(), np.array([1.0, -2.0, 0.5])
    box, m = zo.black_box(lambda m: A @ m, n=4, seed=1), torch.zeros(D, dtype=torch.float64)
    found = np.array([pulled(box, m, a) for _ in range(1000)])
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(0) - A.T @ a) < 4 * error)
    variance = ((found - A.T @ a) ** 2).sum(1).mean()
    assert variance == pytest.approx((D - 1) / 4 * ((A.T @ a) ** 2).sum(), rel=0.1)
    assert box.solves == 1000 * (1 + 2 * 4)


def test_with_an_orthogonal_basis_it_is_exact() -> None:
    """d orthogonal directions are a basis: no variance. And the bias of a cubic is that of central differences."""
    A, a = linear(), np.array([1.0, -2.0, 0.5])
    m = torch.linspace(0.5, 1.5, D, dtype=torch.float64)
    for power, bias in ((1, 0.0), (3, 1e-4)):
        box = zo.black_box(lambda m, power=power: A @ m**power, n=D, mu=1e-2, law=zo.laws.Orthogonal())
        exact = A.T @ a * power * m.numpy() ** (power - 1)
        assert pulled(box, m, a) == pytest.approx(exact, abs=1e-10 + 20 * bias)
        assert np.abs(pulled(box, m, a) - exact).max() >= 0.1 * bias


def test_a_network_trains_through_it_as_by_autograd() -> None:
    """Layers before and after the program; the loss falls to that of exact gradients."""
    A = torch.from_numpy(linear())
    x = torch.randn(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def trained(layer: object) -> float:
        torch.manual_seed(0)
        before, after = torch.nn.Linear(4, D).double(), torch.nn.Linear(M, 1).double()
        opt = torch.optim.Adam([*before.parameters(), *after.parameters()], 0.03)
        for _ in range(150):
            loss = ((after(layer(before(x))) - x.sum(1, keepdim=True).tanh()) ** 2).mean()  # type: ignore[operator]
            opt.zero_grad()
            loss.backward()
            opt.step()
        return float(loss.detach())

    exact = trained(lambda m: torch.tanh(m @ A.T))
    ours = trained(zo.black_box(lambda m: np.tanh(m @ A.numpy().T), n=16))
    assert ours < 2 * exact + 1e-3


def test_the_same_seed_gives_the_same_bits_and_each_pass_new_directions() -> None:
    A, a, m = linear(), np.ones(M), torch.ones(D, dtype=torch.float64)
    one, two, other = (zo.black_box(lambda m: A @ m, n=2, seed=s) for s in (3, 3, 4))
    first, again = pulled(one, m, a), pulled(one, m, a)
    assert np.array_equal(first, pulled(two, m, a))
    assert not np.array_equal(first, again)
    assert not np.array_equal(first, pulled(other, m, a))


def test_solves_go_through_a_map_of_the_caller() -> None:
    A, a, m = linear(), np.ones(M), torch.ones(D, dtype=torch.float64)
    with ThreadPoolExecutor(2) as pool:
        found = pulled(zo.black_box(lambda m: A @ m, n=3, workers=pool.map), m, a)
    assert np.array_equal(found, pulled(zo.black_box(lambda m: A @ m, n=3), m, a))


def test_it_keeps_dtype_shape_and_the_solver_gets_float64() -> None:
    seen = []

    def solver(m: np.ndarray) -> np.ndarray:
        seen.append(m.dtype)
        return m.sum(0, keepdims=True)

    m = torch.ones(2, 3, requires_grad=True)
    y = zo.black_box(solver, n=2)(m)
    assert y.dtype == torch.float32
    assert y.shape == (1, 3)
    y.sum().backward()
    assert m.grad is not None
    assert m.grad.shape == (2, 3)
    assert m.grad.dtype == torch.float32
    assert set(seen) == {np.dtype(np.float64)}


def test_failed_solves_are_left_out_and_named_if_none_is_left() -> None:
    m = torch.tensor([0.0005, 1.0], dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="none of 4 pairs of solves around the point was finite"):
        zo.black_box(lambda m: np.where(m > 0, m, np.nan), n=4)(m).sum().backward()
    half = zo.black_box(lambda m: np.where(m[1:] > 1, np.inf, m[1:]), n=4)
    with pytest.raises(ValueError, match="none of 4 pairs"):
        half(m).sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": 0.0}, "mu=0.0 must be > 0"),
        ({"n": 0}, "n >= 1|n=0|n must"),
        ({"solver": 3}, "solver=3 is no function"),
        ({"workers": 4}, "workers=4 is no map"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        zo.black_box(**{"solver": np.sin, **options})  # type: ignore[arg-type]


def test_bad_inputs_and_changed_shapes_are_refused() -> None:
    with pytest.raises(TypeError, match="got list"):
        zo.black_box(np.sin)([1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"torch\.int64"):
        zo.black_box(np.sin)(torch.arange(3))
    calls = []

    def grows(m: np.ndarray) -> np.ndarray:
        calls.append(1)
        return np.ones(len(calls))

    m = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="keep one shape"):
        zo.black_box(grows)(m).sum().backward()
