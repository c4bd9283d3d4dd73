"""Moments in bfloat16: unbiased, half the memory, the same bits whatever the blocks, and in a replay."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from small_problems import smooth

from zograd import methods
from zograd.core.query import Estimate
from zograd.core.run import Run
from zograd.core.vector import Slot, Vector
from zograd.oracles import sequential
from zograd.rules import Adam, Momentum
from zograd.stores import Leaf, Rate, Store

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("zo_adam", {"moments": "bfloat16", "lr": 1e-2}),
    ("mezo_momentum", {"moments": "bfloat16", "replay": False, "lr": 1e-3}),
]
both = pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=[name for name, _ in SETTINGS])


def fed(rule: Any, g: list[float], n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Store:
    """A store of n equal weights after steps with the gradients g, the same for all weights; lr is 0."""
    store = Store({"x": torch.zeros(n, dtype=dtype)})
    store.require({**rule.slots, "g": 0.0})
    state: dict[str, Any] = {}
    for t, value in enumerate(g):
        store.leaves[0].slots["g"].fill_(value)
        estimate = Estimate(Vector(((Slot("g"), 1.0),)), 0.0, [], None)
        rule.apply(store.iterate([Rate(1e-9)], 1000 * seed + t), estimate, state)
    return store


def test_the_mean_of_the_moments_is_that_of_float32() -> None:
    """40 steps of 20,000 weights: within four standard errors, where increments are a tenth of the spacing."""
    g = [1.0 + 0.3 * math.sin(t) for t in range(40)]
    half, full = fed(Adam(0.9, 0.999, moments="bfloat16"), g, 20_000), fed(Adam(0.9, 0.999), g, 1)
    for name in ("exp_avg", "exp_avg_sq"):
        m, exact = half.leaves[0].slots[name].double(), full.leaves[0].slots[name].double().item()
        assert half.leaves[0].slots[name].dtype == torch.bfloat16
        assert len(m.unique()) > 2
        error = m.std().item() / math.sqrt(len(m))
        assert abs(m.mean().item() - exact) < 4 * error
        assert m.std().item() < 0.02 * exact


def test_increments_below_the_spacing_are_not_lost() -> None:
    """From s near 1, 500 steps without a gradient: s falls to 0.999^500; rounding to nearest would leave it at 1."""
    rule = Adam(0.0, 0.999, moments="bfloat16")
    store = fed(rule, [math.sqrt(1000.0)] + [0.0] * 500, 4000)
    s = store.leaves[0].slots["exp_avg_sq"].double()
    assert abs(s.mean().item() - 0.999**500) < 4 * s.std().item() / math.sqrt(len(s))
    one = torch.ones(1, dtype=torch.bfloat16)
    assert (one * 0.999).item() == 1.0


def test_the_moments_of_a_step_are_rounded_by_noise_of_their_own() -> None:
    """Where both have the same value, they are rounded up at different elements, and so in the next step."""
    store = fed(Adam(0.5, 0.5, moments="bfloat16"), [1.0 + 2.0**-7 * 0.8], 2000)
    m, s = (store.leaves[0].slots[name].double() for name in ("exp_avg", "exp_avg_sq"))
    other = fed(Adam(0.5, 0.5, moments="bfloat16"), [1.0 + 2.0**-7 * 0.8], 2000, seed=1)
    for a, b in ((m, s), (m, other.leaves[0].slots["exp_avg"].double())):
        up, right = (a > a.mean()).double(), (b > b.mean()).double()
        assert abs(np.corrcoef(up, right)[0, 1]) < 4 / math.sqrt(2000)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_blocks_and_replay_change_no_bit(name: str, settings: dict[str, Any], dtype: torch.dtype, monkeypatch) -> None:
    def run_of() -> Run[Any]:
        g = torch.Generator().manual_seed(1)
        weights = {"a": torch.randn(9, 11, generator=g).to(dtype), "b": torch.randn(5, generator=g).to(dtype)}
        return Run(Store(weights), methods.make(name, **settings), 3)

    def state(run: Run[Any]) -> dict[str, bytes]:
        return {k: v.view(torch.uint8).numpy().tobytes() for k, v in run.store.state_dict().items()}

    found, records = [], []
    for size in (1, 7, 64, 1 << 18):
        monkeypatch.setattr(Leaf, "block", size)
        run = run_of()
        losses = sequential(lambda run=run: smooth(torch.cat([t.double().view(-1) for t in run.store.tensors]).numpy()))
        records = [run.step(losses) for _ in range(5)]
        found.append(state(run))
    again = run_of()
    again.replay(records)
    assert all(s == found[0] for s in found)
    assert state(again) == found[0]


@both
def test_a_slot_takes_half_the_bytes(name: str, settings: dict[str, Any]) -> None:
    def bytes_of(**more: Any) -> int:
        store = Store({"w": torch.zeros(30, 4)})
        Run(store, methods.make(name, **{**settings, **more}))
        return sum(slot.numel() * slot.element_size() for slot in store.leaves[0].slots.values())

    assert bytes_of(moments="full") == 2 * bytes_of() > 0


def test_moments_that_nobody_knows_are_refused() -> None:
    for make in (Adam, Momentum):
        with pytest.raises(ValueError, match=r"moments are 'full' \(float32\) or 'bfloat16', got 'half'"):
            make(moments="half")
    with pytest.raises(ValueError, match=r"replay=True has none; add replay=False"):
        methods.mezo_momentum(moments="bfloat16")
    with pytest.raises(ValueError, match=r"moments are 'full', 'bfloat16' \(both Adam\) or 'factored'"):
        methods.residual(moments="half")
