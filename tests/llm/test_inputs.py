"""What enters the layers: leading directions against the SVD, the law and estimator of AGZO, and its runs."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from zograd import Store, methods, minimize
from zograd.core.query import Query
from zograd.core.run import Method, Run
from zograd.core.tape import Tape
from zograd.core.vector import Noise, Vector
from zograd.estimators import Central, Watching
from zograd.laws import OnLayerInputs
from zograd.laws.inputs import INPUTS, OnInputs
from zograd.llm.build import resolve
from zograd.llm.inputs import InputsOfLeaves, directions, leading, watched, watching
from zograd.llm.restore import replay
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train
from zograd.noise import Kind
from zograd.oracles import batched, sequential
from zograd.rules import SGD
from zograd.runs.errors import RunError
from zograd.stores import Leaf


def decaying(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """A matrix whose singular values halve."""
    g = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(n, min(n, d), generator=g)).Q
    v = torch.linalg.qr(torch.randn(d, min(n, d), generator=g)).Q
    return u @ torch.diag(2.0 ** -torch.arange(min(n, d))) @ v.T


# ---- the leading directions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d", "k"), [(40, 30, 6), (5, 30, 12), (200, 4, 3), (1, 7, 4)])
def test_leading_rows_are_those_of_the_svd(n: int, d: int, k: int) -> None:
    x = decaying(n, d)
    found = leading(x, k)
    _, sigma, vt = torch.linalg.svd(x)
    most = min(k, n, d)
    assert found.shape == (most, d)
    torch.testing.assert_close(torch.linalg.vector_norm(found, dim=1), sigma[:most], rtol=1e-3, atol=1e-6)
    a = directions(found, 2)
    torch.testing.assert_close(a @ a.T, torch.eye(len(a)), atol=1e-5, rtol=0)
    projected = (a @ vt[: len(a)].T) ** 2
    torch.testing.assert_close(projected.sum(), torch.tensor(float(len(a))), rtol=1e-4, atol=0)


def test_directions_without_weight_are_left_out() -> None:
    x = torch.zeros(6, 5)
    x[:, 2] = 1.0
    a = directions(leading(x, 4), 3)
    assert a.abs().round(decimals=4).tolist() == [[0.0, 0.0, 1.0, 0.0, 0.0]]
    assert len(directions(leading(torch.zeros(6, 5), 4), 3)) == 0


def test_several_forwards_are_merged_and_what_holds_no_token_is_left_out() -> None:
    layer = nn.Linear(12, 3)
    x, mask = decaying(30, 12).view(2, 15, 12).clone(), torch.ones(2, 15, dtype=torch.bool)
    whole = x.view(-1, 12).clone()
    mask[1, 10:] = False
    whole = torch.cat([whole[:25], torch.zeros(0, 12)])
    x[1, 10:] = 1e3
    x[0, 0, 3] = math.inf
    whole = whole[1:]
    with watched({"it": layer}, 10, lambda: mask) as found:
        layer(x)
    with watched({"it": layer}, 10, lambda: mask) as flat:  # as OPT gives them to some layers
        layer(x.view(-1, 12))
    torch.testing.assert_close(flat["it"], found["it"])
    with watched({"it": layer}, 10) as parts:
        layer(whole[:9])
        layer(whole[9:])
    layer(x)  # no longer watched
    _, _, vt = torch.linalg.svd(whole)
    for sketch in (found["it"], parts["it"]):
        a = directions(sketch, 3)
        torch.testing.assert_close(((a @ vt[:3].T) ** 2).sum(), torch.tensor(3.0), rtol=1e-3, atol=0)


# ---- the direction ---------------------------------------------------------------------------------------------------


def filled(rank: int = 2, d: int = 7) -> tuple[Store, torch.Tensor]:
    """A store of a matrix and two tensors without inputs, and the basis A^T of the matrix."""
    store = Store({"w": torch.zeros(5, d), "e": torch.zeros(6, 4), "b": torch.zeros(9)})
    store.require(OnLayerInputs(rank).slots)
    a = torch.linalg.qr(torch.randn(d, rank, generator=torch.Generator().manual_seed(2))).Q.T
    store.leaves[0].slots[INPUTS].copy_(a)
    return store, a


def elements(store: Store, v: Vector) -> list[torch.Tensor]:
    found: dict[int, list[torch.Tensor]] = {}
    for b in store.blocks(v):
        found.setdefault(b.leaf.index, []).append(b.v[0].clone())
    return [torch.cat(parts).view(leaf.shape) for parts, leaf in zip(found.values(), store.leaves, strict=True)]


def test_the_direction_lies_in_the_span_and_its_second_moment_is_the_projector() -> None:
    store, a = filled()
    total, n = torch.zeros(7, 7), 4000
    for key in range(n):
        w = elements(store, Vector(((OnInputs(key, 2), 1.0),)))[0]
        total += w.T @ w / (5 * n)
    torch.testing.assert_close(w @ a.T @ a, w, atol=1e-5, rtol=0)
    torch.testing.assert_close(total, a.T @ a, atol=5 * math.sqrt(2 / (5 * n)), rtol=0)


def test_tensors_without_inputs_get_plain_noise() -> None:
    store, _ = filled()
    w, e, b = elements(store, Vector(((OnInputs(3, 2), 2.0),)))
    plain = elements(store, Vector(((Noise(Kind.NORMAL, 3), 2.0),)))
    assert torch.equal(e, plain[1])
    assert torch.equal(b, plain[2])
    assert not torch.equal(w, plain[0])
    store.leaves[0].slots[INPUTS].zero_()
    assert torch.equal(elements(store, Vector(((OnInputs(3, 2), 2.0),)))[0], plain[0])


def test_blocks_of_any_size_and_factors_give_the_same_direction(monkeypatch) -> None:
    store, _ = filled()
    e = OnInputs(3, 2)
    whole = elements(store, Vector(((e, 0.5),)))
    for size in (1, 3, 8):
        monkeypatch.setattr(Leaf, "block", size)
        assert all(map(torch.equal, elements(store, Vector(((e, 0.5),))), whole))
    leaf = store.leaves[0]
    u, v = e.factors(0, leaf.shape, torch.device("cpu"), leaf.slots)
    torch.testing.assert_close((u.T @ v * 0.5).float(), whole[0])
    assert e.factors(2, (9,), torch.device("cpu"), store.leaves[2].slots) is None
    assert e.factors(1, (6, 4), torch.device("cpu"), store.leaves[1].slots) is None


# ---- the estimator and its oracle ------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two layers on a batch of inputs that have three leading directions, and a table that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(10, 6), nn.Linear(6, 8, bias=False)
        self.table = nn.Embedding(4, 8)
        self.head = nn.Linear(8, 4, bias=False)
        self.head.weight = self.table.weight
        self.x = decaying(32, 10)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(torch.tanh(self.first(x))))

    def losses(self, copies: int) -> torch.Tensor:
        out = self(self.x.repeat(copies, 1)).view(copies, -1)
        return out.square().mean(1) + out.mean(1)


def run_of(net: Net, method: Method[Any], seed: int = 0) -> Run[Any]:
    store = Store(dict(net.named_parameters()))
    store.inputs = InputsOfLeaves(net, store.leaves, method.law.rank)
    return Run(store, method, seed)


def one_by_one(net: Net) -> Any:
    return watching(sequential(lambda: net.losses(1).sum()))


def test_a_step_is_algorithm_1() -> None:
    """By hand in NumPy's order: A from the batch itself, R A^T, the one-sided difference, the move."""
    net = Net()
    run = run_of(net, methods.agzo(lr=0.05, mu=1e-3, rank=2))
    before = {leaf.name: leaf.tensor.clone() for leaf in run.store.leaves}
    record = run.step(one_by_one(net))
    assert record.evaluations == 2
    assert len(record.losses) == 2
    inputs = {
        "first.weight": net.x,
        "second.weight": torch.tanh(net.x @ before["first.weight"].T + before["first.bias"]),
    }
    ((e, c),) = record.vector.terms
    assert c == pytest.approx((record.losses[1] - record.losses[0]) / 1e-3)
    v = dict(zip(before, elements(run.store, Vector(((e, 1.0),))), strict=True))
    for name, x in inputs.items():
        _, _, vt = torch.linalg.svd(x)
        a = vt[:2]
        torch.testing.assert_close(v[name] @ a.T @ a, v[name], atol=2e-3, rtol=0)
        assert v[name].abs().max() > 0.1
    for name, w in before.items():
        torch.testing.assert_close(dict(net.named_parameters())[name], w - 0.05 * c * v[name], rtol=1e-5, atol=1e-6)


def test_a_weight_that_two_modules_read_has_no_inputs() -> None:
    net = Net()
    run = run_of(net, methods.agzo(rank=2))
    run.step(one_by_one(net))
    found = {leaf.name: bool(leaf.slots[INPUTS].any()) for leaf in run.store.leaves}
    assert found == {"first.weight": True, "first.bias": False, "second.weight": True, "table.weight": False}


@pytest.mark.parametrize(("central", "counts"), [(False, [2, 2, 2, 2]), (True, [3, 2, 3, 2])])
def test_it_looks_every_refresh_steps(central: bool, counts: list[int]) -> None:
    net = Net()
    method = methods.agzo(lr=0.1, rank=2, refresh=2, central=central)
    run = run_of(net, method)
    bases = []
    for evaluations in counts:
        record = run.step(one_by_one(net))
        assert record.evaluations == len(record.losses) == evaluations
        bases.append(run.store.leaves[2].slots[INPUTS].clone())
    assert method.evaluations == max(counts)
    assert torch.equal(bases[0], bases[1])
    assert torch.equal(bases[2], bases[3])
    assert not torch.equal(bases[0], bases[2])


def test_points_of_low_rank_share_a_forward() -> None:
    """Side branches give the values of one at a time, to rounding, and so do the steps."""
    net, other = Net(), Net()
    method = methods.agzo(lr=0.05, rank=2, n=3)
    a, b = run_of(net, method), run_of(other, method)
    oracle = watching(batched(net.losses, 4))
    for _ in range(3):
        one, two = a.step(oracle), b.step(one_by_one(other))
        np.testing.assert_allclose(one.losses, two.losses, rtol=1e-5)


def test_an_oracle_that_raises_leaves_the_inputs_as_they_were() -> None:
    net = Net()
    run = run_of(net, methods.agzo(rank=2))
    run.step(one_by_one(net))
    before = {k: v.clone() for k, v in run.store.state_dict().items()}

    def broken() -> float:
        net.losses(1)
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        run.step(watching(sequential(broken)))
    assert all(torch.equal(v, before[k]) for k, v in run.store.state_dict().items())


def test_what_has_no_layers_is_refused_with_a_sentence() -> None:
    with pytest.raises(TypeError, match="'agzo' looks at what enters the linear layers of a language model"):
        minimize(lambda x: float(x @ x), np.ones(3), "agzo")
    with pytest.raises(
        TypeError, match=r"OnLayerInputs reads what enters .* but the estimator is Central. Use methods.agzo"
    ):
        Method(Central(1), OnLayerInputs(), SGD())
    with pytest.raises(ValueError, match="refresh is a number of steps and must be at least 1, got 0"):
        Watching(refresh=0)
    with pytest.raises(ValueError, match="rank >= 1"):
        methods.agzo(rank=0)
    net = Net()
    table = Store({"table": net.table.weight, "bias": net.first.bias})
    with pytest.raises(ValueError, match="none of the 2 trained tensors, table among them, is the weight of a linear"):
        InputsOfLeaves(net, table.leaves, 2)


def test_the_first_evaluation_is_marked() -> None:
    run = run_of(Net(), methods.agzo(refresh=2))
    assert [q.inputs for q in run.ask()] == [True, False]
    run.tell([1.0, 2.0])
    assert [q.inputs for q in run.ask()] == [False, False]
    assert run.ask()[0] == Query()


# ---- runs ------------------------------------------------------------------------------------------------------------


def settings(model: Path, **more: Any) -> TrainSettings:
    common = {
        "model": str(model), "task": "mr", "method": "agzo", "dtype": "float32", "threads": 1, "batch_size": 8,
        "steps": 6, "train_examples": 40, "eval_examples": 10, "lr": 1e-3, "save_every": 4,
    }  # fmt: skip
    return TrainSettings.model_validate({**common, **more})


PARTS = [{"layers": 1, "dtype": "bfloat16"}, {"train": "lora"}, {"train": "*.q_proj.weight", "shards": 2}]


@pytest.mark.parametrize("part", PARTS, ids=["one block in bfloat16", "lora", "a pattern in two parts"])
def test_training_lowers_the_loss(tiny_model: Path, tmp_path: Path, part: dict[str, Any]) -> None:
    lr = 1e-1 if part.get("train") == "lora" else 1e-2
    done = train(settings(tiny_model, steps=40, **{"lr": lr, "set": {"n": 4}, **part}), tmp_path / "run", quiet=True)
    assert done["loss_last"] < done["loss_first"]
    assert done["evaluations"] == 5 * done["steps"]


def test_a_run_goes_on_from_its_last_state_to_the_same_bits(tiny_model: Path, tmp_path: Path) -> None:
    """The tape is two steps ahead of the state, as after a kill; the span in use is part of the state."""
    more = {"set": {"refresh": 3}, "layers": 2}
    whole = train(settings(tiny_model, steps=9, **more), tmp_path / "whole", quiet=True)
    run = tmp_path / "run"
    train(settings(tiny_model, steps=4, **more), run, quiet=True)
    state = (run / "state.safetensors").read_bytes()
    train(settings(tiny_model, steps=6, **more), run, resume=True, quiet=True)
    (run / "state.safetensors").write_bytes(state)
    with pytest.raises(RunError, match=r"a tape of agzo does not give the weights back"):
        replay(run, None, tmp_path / "weights")
    resumed = train(settings(tiny_model, steps=9, **more), run, resume=True, quiet=True)
    assert resumed["sha256"] == whole["sha256"]
    assert list(Tape(run / "tape.zo").records) == list(Tape(tmp_path / "whole" / "tape.zo").records)
    assert replay(run, None, tmp_path / "weights")["sha256"] == whole["sha256"]
    (run / "state.safetensors").unlink()
    shutil.rmtree(tmp_path / "whole")
    assert train(settings(tiny_model, steps=9, **more), run, resume=True, quiet=True)["sha256"] == whole["sha256"]


def test_what_does_not_go_together_is_said_before_training(tiny_model: Path, tmp_path: Path) -> None:
    for more, match in (
        ({"train": "*norm*"}, "--method agzo looks at what enters linear layers, and none of the 9 trained tensors"),
        ({"compile": True}, "--method agzo does not go with --compile"),
        ({"offload": "disk"}, "--method agzo does not go with --offload"),
    ):
        with pytest.raises(SettingsError, match=match):
            train(settings(tiny_model, **more), tmp_path / "run", quiet=True)
    with pytest.raises(SettingsError, match="--method agzo runs in one process in this release, and here are 2"):
        resolve(settings(tiny_model), world=2)
