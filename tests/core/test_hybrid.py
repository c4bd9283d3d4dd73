"""Laws of the hybrid step: both parts start from one point; with one rate at zero the other part is left."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zograd
from zograd import Hybrid, ZOOptimizer, methods
from zograd.core.run import Method
from zograd.estimators import Forward
from zograd.laws import Gaussian
from zograd.rules import SGD

DATA = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
LABELS = (DATA[:, 0] * DATA[:, 1] > 0).long()


class Net(nn.Module):
    """A base of two layers and an adapter between them (low rank, as LoRA is)."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 2)
        self.down, self.up = nn.Linear(16, 2, bias=False), nn.Linear(2, 16, bias=False)
        self.drop = nn.Dropout(dropout)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.a(x))
        return self.b(self.drop(h + self.up(self.down(h))))

    @property
    def base(self) -> list[nn.Parameter]:
        return [*self.a.parameters(), *self.b.parameters()]

    @property
    def adapter(self) -> list[nn.Parameter]:
        return [*self.down.parameters(), *self.up.parameters()]

    def loss(self) -> torch.Tensor:
        return F.cross_entropy(self(DATA.double()), LABELS)


def hybrid(net: Net, zo_lr: float, fo_lr: float, method=None, fo=torch.optim.SGD) -> Hybrid:
    method = method or methods.mezo(lr=zo_lr)
    return Hybrid(ZOOptimizer(net.base, method, seed=1), fo(net.adapter, lr=fo_lr))


def values(net: Net) -> list[torch.Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(a: Net, b: Net) -> bool:
    return all(torch.equal(p, q) for p, q in zip(values(a), values(b), strict=True))


@pytest.mark.parametrize("fo", [torch.optim.SGD, torch.optim.Adam])
def test_without_the_zeroth_order_rate_it_trains_the_adapter_alone(fo) -> None:
    ours, theirs = Net(), Net()
    opt, plain = hybrid(ours, 0.0, 0.05, fo=fo), fo(theirs.adapter, lr=0.05)
    for _ in range(10):
        loss = opt.step(ours.loss)
        plain.zero_grad()
        expected = theirs.loss()
        expected.backward()
        plain.step()
        assert float(loss) == float(expected.detach())
    assert same(ours, theirs)


def test_without_the_first_order_rate_it_is_the_zeroth_order_optimizer() -> None:
    ours, theirs = Net(dropout=0.3), Net(dropout=0.3)
    opt, plain = hybrid(ours, 0.02, 0.0), ZOOptimizer(theirs.base, methods.mezo(lr=0.02), seed=1)
    for _ in range(10):
        opt.step(ours.loss)
        plain.step(theirs.loss)
    assert same(ours, theirs)
    assert not same(ours, Net())


def test_both_parts_start_from_the_same_point() -> None:
    """One step moves x as the zeroth-order part alone would, and y as the first-order part alone would."""
    both, x_only, y_only = Net(), Net(), Net()
    hybrid(both, 0.05, 0.1).step(both.loss)
    hybrid(x_only, 0.05, 0.0).step(x_only.loss)
    hybrid(y_only, 0.0, 0.1).step(y_only.loss)
    for mine, theirs in ((both.base, x_only.base), (both.adapter, y_only.adapter)):
        for p, q in zip(mine, theirs, strict=True):
            assert torch.equal(p, q)
    assert not same(both, x_only)


def test_all_passes_see_the_same_dropout_masks_and_the_base_is_evaluated_once() -> None:
    """One-sided differences: the loss at (x, y) comes from the pass that is differentiated; 2 passes in all."""
    net, seen = Net(dropout=0.5), []

    def loss() -> torch.Tensor:
        seen.append((torch.is_grad_enabled(), torch.rand(())))
        return net.loss()

    opt = hybrid(net, 0.01, 0.1, Method(Forward(1), Gaussian(), SGD(), lr=0.01))
    before = torch.get_rng_state()
    shown = opt.step(loss)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random state is left alone"
    assert [grad for grad, _ in seen] == [True, False]
    assert seen[0][1] == seen[1][1]
    assert opt.zo.last is not None
    assert opt.zo.last.losses[0] == float(shown)


def test_no_gradient_of_the_base_is_formed() -> None:
    net = Net()
    opt = hybrid(net, 0.01, 0.1)
    opt.step(net.loss)
    assert all(p.grad is None for p in net.base)
    assert all(p.requires_grad for p in net.base), "what the user set comes back"
    assert all(p.grad is not None for p in net.adapter)
    with pytest.raises(RuntimeError, match="lost"):
        opt.step(lambda: (_ for _ in ()).throw(RuntimeError("lost")))
    assert all(p.requires_grad for p in net.base)


def test_two_rates_beat_one_and_the_adapter_alone() -> None:
    """The rate that suits the adapter breaks the base; with a rate of its own the base adds to what the adapter can."""

    def end(zo_lr: float) -> float:
        net = Net()
        opt = hybrid(net, zo_lr, 0.3)
        for _ in range(400):
            opt.step(net.loss)
        return float(net.loss().detach())

    adapter_alone, asymmetric, symmetric = end(0.0), end(0.01), end(0.3)
    assert asymmetric < 0.95 * adapter_alone
    assert not symmetric < 2 * adapter_alone


def test_a_loss_that_is_not_finite_moves_nothing() -> None:
    net = Net()
    opt = hybrid(net, 0.01, 0.1)
    before = values(net)
    assert torch.isnan(opt.step(lambda: net.loss() * float("nan")))
    assert all(torch.equal(a, b) for a, b in zip(before, values(net), strict=True))
    assert opt.zo.last is not None
    assert opt.zo.last.refused


def test_a_base_that_is_frozen_as_peft_does_it() -> None:
    """Trained when asked for, with the bits of a base that requires grad; it stays frozen."""
    ours, theirs = Net(), Net()
    for p in ours.base:
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no tensor requires grad"):
        hybrid(ours, 0.02, 0.05)
    zo = ZOOptimizer(ours.base, methods.mezo(lr=0.02), seed=1, frozen=True)
    frozen, plain = Hybrid(zo, torch.optim.SGD(ours.adapter, lr=0.05)), hybrid(theirs, 0.02, 0.05)
    for _ in range(3):
        assert float(frozen.step(ours.loss)) == float(plain.step(theirs.loss))
    assert same(ours, theirs)
    assert not any(p.requires_grad for p in ours.base)


def test_it_goes_on_from_its_state() -> None:
    net = Net()
    opt = hybrid(net, 0.01, 0.05, fo=torch.optim.Adam)
    for _ in range(3):
        opt.step(net.loss)
    other = copy.deepcopy(net)
    again = hybrid(other, 0.01, 0.05, fo=torch.optim.Adam)
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    for _ in range(3):
        opt.step(net.loss)
        again.step(other.loss)
    assert same(net, other)


def test_what_cannot_be_trained_so_is_refused() -> None:
    net = Net()
    with pytest.raises(ValueError, match=r"'group0\.0' is in both optimizers"):
        Hybrid(ZOOptimizer(net.base), torch.optim.SGD([*net.adapter, net.a.weight], lr=0.1))
    frozen = Net()
    frozen.down.requires_grad_(False)
    with pytest.raises(ValueError, match="does not require grad"):
        Hybrid(ZOOptimizer(frozen.base), torch.optim.SGD(frozen.adapter, lr=0.1))
    opt = hybrid(net, 0.01, 0.1)
    with pytest.raises(TypeError, match="got float without a graph"):
        opt.step(lambda: net.loss().item())
    opt.zero_grad()
    assert zograd.Hybrid is Hybrid
