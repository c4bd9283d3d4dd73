"""Pickle and deepcopy at any time: the copy goes on as the original does, and is independent of it."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_problems import CASES, smooth, start
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from zograd import AskTell, Hybrid, Run, Store, ZOOptimizer, methods
from zograd.laws import RankOne
from zograd.oracles import sequential

by_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
}
ways = pytest.mark.parametrize("way", COPIES)


@ways
@by_case
def test_asktell_between_ask_and_tell(case, way: str) -> None:
    """The copy asks for the same points; the original has not noticed; both end at the same bits."""
    loop = AskTell(start(case.method()), case.method(), seed=2)
    for _ in range(3):
        loop.tell([smooth(x) for x in loop.ask()])
    points = loop.ask()
    other = COPIES[way](loop)
    np.testing.assert_array_equal(np.stack(other.ask()), np.stack(points))
    for side in (loop, other):
        for _ in range(4):
            side.tell([smooth(x) for x in side.ask()])
    np.testing.assert_array_equal(other.x, loop.x)
    assert not np.array_equal(loop.x, start(case.method()))
    loop.tell([smooth(x) for x in loop.ask()])
    assert other.run.step_number + 1 == loop.run.step_number


@ways
def test_asktell_between_two_questions_of_a_step(way: str) -> None:
    """Aligned directions ask twice: the answers of the first time go along."""
    loop = AskTell(start(), methods.dap(lr=0.01), seed=2)
    assert loop.tell([smooth(x) for x in loop.ask()]) is None
    other = COPIES[way](loop)
    for side in (loop, other):
        record = side.tell([smooth(x) for x in side.ask()])
        assert record is not None
    np.testing.assert_array_equal(other.x, loop.x)


@by_case
def test_the_state_of_asktell_is_json_but_for_its_arrays(case) -> None:
    """Rules that remember Vectors too; the arrays may travel as lists."""
    loop = AskTell(start(case.method()), case.method(), seed=2)
    for _ in range(3):
        loop.tell([smooth(x) for x in loop.ask()])
    state = loop.state_dict()
    assert all(isinstance(a, np.ndarray) for a in state["tensors"].values())
    lists = {name: a.tolist() for name, a in state["tensors"].items()}
    text = json.dumps({"run": state["run"], "tensors": lists})
    other = AskTell(np.full(20, 0.05), case.method(), seed=9)
    other.load_state_dict(json.loads(text))
    for side in (loop, other):
        for _ in range(3):
            side.tell([smooth(x) for x in side.ask()])
    np.testing.assert_array_equal(other.x, loop.x)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3)).double()


INPUTS = torch.linspace(-1, 1, 32, dtype=torch.float64).reshape(8, 4)
LABELS = torch.arange(8) % 3


def loss(model: nn.Module) -> Callable[[], torch.Tensor]:
    return lambda: F.cross_entropy(model(INPUTS), LABELS)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@ways
@pytest.mark.parametrize("name", ["zo_sgd", "zo_adam", "mezo_momentum", "fzoo", "hizoo", "zo_svrg"])
def test_the_optimizer_with_its_model(name: str, way: str) -> None:
    """With a scheduler attached, whose wrapper around step does not travel; the copy moves the copied model alone."""
    model = net()
    opt = ZOOptimizer(model.parameters(), methods.make(name, lr=1e-2), seed=3)
    schedule = LambdaLR(opt, lambda t: 1 / (1 + t))
    for _ in range(3):
        opt.step(loss(model))
        schedule.step()
    before = weights(model)
    model2, opt2 = COPIES[way]((model, opt))
    assert opt2.param_groups[0]["lr"] == opt.param_groups[0]["lr"]
    for _ in range(3):
        opt2.step(loss(model2))
    assert all(map(torch.equal, weights(model), before))
    for _ in range(3):
        opt.step(loss(model))
    assert all(map(torch.equal, weights(model), weights(model2)))
    assert not all(map(torch.equal, weights(model), before))
    assert opt2.state_dict()["zograd"]["run"] == opt.state_dict()["zograd"]["run"]
    assert (opt2.seed, opt2.method, opt2.rounding) == (opt.seed, opt.method, opt.rounding)


@ways
def test_a_hybrid_with_its_model(way: str) -> None:
    model = net()
    params = list(model.parameters())
    opt = Hybrid(ZOOptimizer(params[:2], methods.zo_sgd(lr=1e-2), seed=3), torch.optim.Adam(params[2:], lr=1e-2))
    opt.step(loss(model))
    model2, opt2 = COPIES[way]((model, opt))
    for side, m in ((opt, model), (opt2, model2)):
        for _ in range(3):
            side.step(loss(m))
    assert all(map(torch.equal, weights(model), weights(model2)))
    assert not all(map(torch.equal, weights(model2), weights(net())))


@ways
def test_a_run_with_moves_that_wait_and_tied_16_bit_weights(way: str) -> None:
    """The copy has the moves made; ties, low halves and the lens still know their tensors."""
    w = nn.Parameter(torch.ones(4, 6, dtype=torch.bfloat16))
    tied, gain = w.detach(), nn.Parameter(torch.ones(6, dtype=torch.bfloat16))

    def runs(w: Any, tied: Any, gain: Any) -> Any:
        store = Store({"w": w, "tied": tied, "gain": gain})
        return Run(store, methods.zo_sgd(lr=1e-2, law=RankOne()), 5)

    run = runs(w, tied, gain)
    tensors = (w, tied, gain)

    def oracle(t: Any) -> Any:
        return sequential(lambda: F.linear(t[2].float(), t[0].float()).square().mean() + t[1].float().square().mean())

    with run.store.deferring(merge=True):
        for _ in range(3):
            run.step(oracle(tensors))
        run2, tensors2 = COPIES[way]((run, tensors))
    assert run2.store.digest() == run.store.digest()
    run.step(oracle(tensors))
    run2.step(oracle(tensors2))
    assert run2.store.digest() == run.store.digest()
    assert torch.equal(tensors2[0], tensors2[1]), "the tie is there"
    assert not torch.equal(tensors2[0].float(), torch.ones(4, 6))


# ---- states that do not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["x.w", "x.h", "low.h", "slot.m.w", "slot.m.h"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32], ids=str)
def test_a_state_of_another_dtype_is_refused_and_changes_nothing(which: str, dtype: torch.dtype) -> None:
    """Weights, low halves, slots: also where torch would convert them without a word."""
    w, h = torch.ones(3, 2), torch.ones(3, 2, dtype=torch.bfloat16)
    store = Store({"w": w, "h": h}, rounding="split")
    store.require({"m": 0.5})
    state = {name: tensor.clone() for name, tensor in store.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in state.items()}
    changed = {name: tensor + 1 for name, tensor in state.items()}
    with pytest.raises(ValueError, match=f"'{which}' is .* here, but .* {dtype} in the saved state"):
        store.load_state_dict({**changed, which: state[which].to(dtype)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in store.state_dict().items())
    store.load_state_dict(changed)
    assert all(torch.equal(tensor, changed[name]) for name, tensor in store.state_dict().items())


def test_a_loop_in_float64_does_not_take_the_state_of_one_in_float32() -> None:
    loops = [AskTell(start().astype(dtype), methods.zo_sgd(), seed=1) for dtype in (np.float32, np.float64)]
    with pytest.raises(ValueError, match=r"'x.x' is .* torch.float64 here, but .* torch.float32 in the saved state"):
        loops[1].load_state_dict(loops[0].state_dict())
    np.testing.assert_array_equal(loops[1].x, start())
