"""What a researcher met in torch loops: rates, decays and states that did not mean what they said."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zograd as zo


def ones(n: int = 4) -> nn.Parameter:
    return nn.Parameter(torch.ones(n))


def steps(opt: zo.ZOOptimizer, loss: Any, n: int) -> None:
    for _ in range(n):
        opt.step(loss)


def test_a_schedule_that_begins_at_zero_moves() -> None:
    """The group's rate was that of the first step, 0, for ever."""
    lr = zo.schedules.Table(0.1, total=50, values=(0.0, 1.0, 0.0))
    w = ones()
    opt = zo.ZOOptimizer([w], zo.methods.zo_sgd(lr=lr, n=4))
    for _ in range(50):
        opt.step(lambda: (w**2).sum())
    assert float((w.detach() ** 2).sum()) < 1e-3


def test_a_group_with_a_rate_of_its_own_warms_up_to_it() -> None:
    """It warmed up to ten times its rate."""
    a, b = ones(), ones()
    method = zo.methods.zo_sgd(lr=zo.schedules.constant(0.1, warmup=10))
    opt = zo.ZOOptimizer([{"params": [a]}, {"params": [b], "lr": 0.05}], method)
    rates = []
    for _ in range(12):
        opt.step(lambda: (a**2).sum() + (b**2).sum())
        rates.append([rate.lr for rate in opt.last.rates])
    assert rates[0] == pytest.approx([0.01, 0.005])
    assert rates[11] == [0.1, 0.05] == [group["lr"] for group in opt.param_groups]


@pytest.mark.parametrize("lr", ["auto", zo.learning_rate.TrustRate(), 0.05])
def test_groups_have_their_own_weight_decay(lr: Any) -> None:
    """With a measured rate it had no effect."""
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    x, y = torch.randn(64, 8), torch.randint(3, (64,))
    groups = [{"params": m[0].parameters(), "weight_decay": 0.5}, {"params": m[2].parameters()}]
    opt = zo.ZOOptimizer(groups, zo.methods.zo_sgd(lr=lr, n=4))
    opt.step(lambda: F.cross_entropy(m(x), y))
    assert [rate.weight_decay for rate in opt.last.rates] == [0.5, 0.0]


def test_what_leaves_the_set_of_frank_wolfe_is_refused() -> None:
    """Weight decay, rates of groups and rates above 1 left the simplex, with success."""
    method = zo.methods.frank_wolfe(zo.sets.Simplex(1.0))
    with pytest.raises(TypeError, match="FrankWolfe with weight decay would leave its set"):
        replace(method, weight_decay=0.1)
    with pytest.raises(TypeError, match=r"lr is in \[0, 1\], got 1.5"):
        zo.methods.frank_wolfe(zo.sets.Simplex(1.0), lr=1.5)
    a, b = nn.Parameter(torch.full((2,), 0.25)), nn.Parameter(torch.full((2,), 0.25))
    for second, says in (
        ({"lr": 0.2}, "the learning rates 0.2, 1: give them one"),
        ({"weight_decay": 0.1}, "leave its"),
    ):
        opt = zo.ZOOptimizer([{"params": [a]}, {"params": [b], **second}], method)
        with pytest.raises((ValueError, TypeError), match=says):
            opt.step(lambda: a.sum() - b.sum())
        assert torch.equal(a.data, torch.full((2,), 0.25))


def test_the_decay_of_a_group_is_checked_as_that_of_a_method() -> None:
    a = ones()
    opt = zo.ZOOptimizer([{"params": [a], "weight_decay": 5.0}], zo.methods.zo_conservative(lr=0.1))
    with pytest.raises(TypeError, match="weight"):
        opt.step(lambda: ((a - 1) ** 2).sum())


def test_a_measured_rate_of_zero_is_said() -> None:
    w = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    opt = zo.ZOOptimizer([w], zo.methods.zo_sgd(lr="auto", n=4))
    with pytest.warns(UserWarning, match="nothing has moved in 10 steps: lr='auto' needs positive curvature") as caught:
        steps(opt, lambda: w.abs().sum(), 30)
    assert len(caught) == 1


def test_rounding_is_no_curvature() -> None:
    """Along signs x^2 - y^2 is flat: its second differences were rounding, and the first rate was their inverse."""
    w = nn.Parameter(torch.tensor([1.0, 0.5]).double())
    opt = zo.ZOOptimizer([w], zo.methods.zo_sgd(lr="auto", n=4), seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(20):
            opt.step(lambda: w[0] ** 2 - w[1] ** 2)
    assert w.abs().max() < 10


def test_tensors_that_are_frozen_later_are_spoken_of() -> None:
    m = nn.Linear(3, 2)
    opt = zo.ZOOptimizer(m.parameters(), zo.methods.zo_sgd(lr=0.1))
    m.bias.requires_grad_(False)
    with pytest.warns(UserWarning, match="1 tensors no longer require grad, and are trained as before") as caught:
        steps(opt, lambda: m(torch.ones(1, 3)).square().sum(), 3)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (lambda: zo.ZOOptimizer([ones()], zo.methods.zo_sgd(lr="auto")).state_dict(), "of Central, SGD, .* AutoRate"),
        (lambda: zo.ZOOptimizer([ones()], zo.methods.zo_adam(lr=0.1)).state_dict(), "of Central, Adam"),
        (
            lambda: zo.ZOOptimizer([ones()], zo.methods.rank(lr=0.1)).state_dict(),
            "the state is of",
        ),
        (lambda: torch.optim.SGD([ones()], lr=0.5).state_dict(), "no state of a ZOOptimizer"),
    ],
)
def test_the_state_of_another_method_is_refused_before_anything_changes(state: Any, says: str) -> None:
    opt = zo.ZOOptimizer([ones()], zo.methods.zo_sgd(lr=0.25))
    with pytest.raises(ValueError, match=says):
        opt.load_state_dict(state())
    assert opt.param_groups[0]["lr"] == 0.25
    opt.load_state_dict(zo.ZOOptimizer([ones()], zo.methods.zo_sgd(lr=0.5)).state_dict())
    assert opt.param_groups[0]["lr"] == 0.5


def test_a_closure_that_calls_backward_is_told_so() -> None:
    w = ones()

    def closure() -> torch.Tensor:
        loss = (w**2).sum()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match=r"the closure calls backward\(\)"):
        zo.ZOOptimizer([w]).step(closure)
    with pytest.raises(ValueError, match="maximize=True has no effect"):
        zo.ZOOptimizer([{"params": [w], "maximize": True}])
    w.grad = torch.ones(4)
    zo.ZOOptimizer([w]).zero_grad()
    assert w.grad is None


@pytest.mark.parametrize("ball", [zo.sets.Simplex(1.0), zo.sets.L1Ball(1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_far_above_the_radius_are_projected(ball: Any, dtype: torch.dtype) -> None:
    """They ended at 0, or in an IndexError."""
    even = ball.project_(torch.full((4, 3), 1e30, dtype=dtype))
    torch.testing.assert_close(even, torch.full((4, 3), 1 / 12, dtype=dtype))
    one = ball.project_(torch.tensor([[1e8, 1.0, 0.0]], dtype=dtype))
    assert one.tolist() == [[1.0, 0.0, 0.0]]
    assert ball.project_(torch.tensor([float("nan"), 1.0])).isnan().any()
    nuclear = zo.sets.NuclearBall(1.0).project_(1e30 * torch.eye(3, dtype=dtype))
    torch.testing.assert_close(nuclear, torch.eye(3, dtype=dtype) / 3)


def test_the_error_of_a_trace_in_noise_is_what_it_says() -> None:
    """One f(x) for all terms put its error into all of them: 33 was stated as 4."""
    import numpy as np

    rng = np.random.default_rng(0)
    p = zo.diagnostics.problem(lambda x: float(0.5 * x @ x + 1e-3 * rng.normal()), np.ones(20))
    found = [zo.diagnostics.trace(p, n=32, seed=seed) for seed in range(60)]
    assert np.std([t.value for t in found]) == pytest.approx(np.mean([t.error for t in found]), rel=0.35)
    assert {t.evaluations for t in found} == {98}
    exact = zo.diagnostics.trace(zo.diagnostics.problem(lambda x: float(0.5 * x @ x), np.ones(20)), n=32)
    assert exact.value == pytest.approx(20)
    assert exact.evaluations == 66


def parts(g: nn.Module, d: nn.Module) -> dict[str, Any]:
    """Ways in which people give an optimizer the parameters of two modules, with names."""
    return {
        "groups": lambda: [{"params": g.named_parameters()}, {"params": d.named_parameters()}],
        "a list": lambda: [*g.named_parameters(), *d.named_parameters()],
    }


@pytest.mark.parametrize("way", ["groups", "a list", "added"])
def test_two_modules_with_equal_names_are_both_trained(way: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    y = (x.sum(1) > 0).long()
    g, d = nn.Linear(8, 2), nn.Linear(8, 2)
    before = g.weight.detach().clone(), d.weight.detach().clone()
    if way == "added":
        opt = zo.ZOOptimizer(g.named_parameters(), zo.methods.fzoo(lr=3e-2))
        opt.add_param_group({"params": d.named_parameters()})
    else:
        opt = zo.ZOOptimizer(parts(g, d)[way](), zo.methods.fzoo(lr=3e-2))
    for _ in range(3):
        opt.step(lambda: F.cross_entropy(g(x) + d(x), y))
    assert len(opt.store.leaves) == 4
    assert not torch.equal(g.weight, before[0])
    assert not torch.equal(d.weight, before[1])
    opt.load_state_dict(opt.state_dict())


def test_a_loss_computed_outside_of_the_closure_is_named() -> None:
    model = nn.Linear(8, 2)
    x = torch.randn(9, 8)
    opt = zo.ZOOptimizer(model.parameters(), zo.methods.fzoo(lr=1e-2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(30):
            loss = model(x).square().mean()
            opt.step(lambda loss=loss: loss)
    said = [str(w.message) for w in caught]
    assert "or the loss is computed outside of the function that returns it" in said[0]
    assert ["compute it inside of the closure" in text for text in said] == [False, True]


@pytest.mark.parametrize(("given", "kind"), [(torch.tensor(1.0), "Tensor"), (0.5, "float")])
def test_a_loss_in_place_of_a_closure_is_named(given: Any, kind: str) -> None:
    opt = zo.ZOOptimizer(nn.Linear(2, 2).parameters())
    with pytest.raises(TypeError, match=rf"a function that computes the loss, and got a {kind}: write opt\.step\(lam"):
        opt.step(given)


@pytest.mark.parametrize("key", ["betas", "momentum", "mu", "n"])
def test_settings_in_a_group_are_refused(key: str) -> None:
    with pytest.raises(TypeError, match=rf"a param group has {key}, .*zograd\.methods\.zo_sgd\({key}=0\.5\)"):
        zo.ZOOptimizer([{"params": nn.Linear(2, 2).parameters(), key: 0.5}])


@pytest.mark.parametrize("lr", [math.nan, -0.1, math.inf])
def test_a_rate_that_is_none_is_refused_before_anything_moves(lr: float) -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    opt = zo.ZOOptimizer(model.parameters())
    opt.param_groups[0]["lr"] = lr
    with pytest.raises(ValueError, match="and a learning rate is a number >= 0"):
        opt.step(lambda: model(torch.ones(2)).sum())
    assert torch.equal(model.weight, before)


def test_hooks_on_gradients_are_named() -> None:
    model = nn.Linear(2, 2)
    model.weight.register_hook(lambda g: 0 * g)
    with pytest.warns(UserWarning, match="1 of 2 tensors have hooks on their gradients, which never run"):
        zo.ZOOptimizer(model.parameters())


def test_tensors_that_are_released_later_are_named_once() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    with pytest.warns(UserWarning, match="leaves 1 of 2 tensors"):
        opt = zo.ZOOptimizer(model.parameters(), zo.methods.fzoo(lr=1e-3))
    model.bias.requires_grad_(True)
    with pytest.warns(UserWarning, match="1 tensors require grad now, and stay as they are"):
        opt.step(lambda: model(torch.ones(2)).square().sum())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step(lambda: model(torch.ones(2)).square().sum())
