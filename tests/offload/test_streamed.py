"""Weights that visit a device block by block: the same steps, two blocks at a time, whatever arrives when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from zograd import methods
from zograd.core.run import Record, Run
from zograd.offload.streamed import Lane, Streamed
from zograd.oracles import sequential
from zograd.stores import Store


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(3 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.outer(torch.relu(self.inner(self.norm(x))))
        return out


class Net(nn.Module):
    def __init__(self, depth: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(8) for _ in range(depth))
        self.head = nn.Linear(8, 1)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x).float().square().mean()  # type: ignore[no-any-return]


def net(depth: int, dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(depth)
    return Net(depth, dtype).requires_grad_(False)


class _Caught(TorchDispatchMode):
    """Copies become work for later."""

    def __init__(self, work: list[Callable[[], object]]) -> None:
        super().__init__()
        self.work = work

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self.work.append(lambda: func(*args, **(kwargs or {})))
            return args[0]
        return func(*args, **(kwargs or {}))


class LateLane(Lane):
    """A stream of the slowest kind: a copy is made when somebody waits for it, and not before."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.work: list[Callable[[], object]] = []
        self.done = 0

    def __enter__(self) -> None:
        self._context = _Caught(self.work)
        self._context.__enter__()

    def mark(self) -> Callable[[], None]:
        until = len(self.work)
        return lambda: self._run(until)

    def after(self, event: Any) -> None:
        if event is not None:
            self.work.append(event)

    def finish(self) -> None:
        self._run(len(self.work))

    def _run(self, until: int) -> None:
        while self.done < until:
            self.done += 1
            self.work[self.done - 1]()


class Now(Lane):
    """The main lane beside late ones: it does what it waits for."""

    def after(self, event: Any) -> None:
        if event is not None:
            event()


def streamed(model: Net, *, late: bool) -> Streamed:
    found = Streamed(list(model.blocks), "cpu")
    if late:
        found.up, found.down = LateLane(), LateLane()
        found.main = Now(torch.device("cpu"), main=True)
    return found


def trained(model: Net, offload: Streamed | None, method: Any, steps: int = 5) -> tuple[list[Record], str, Store]:
    store = Store(dict(model.named_parameters()), pages=offload)
    if offload is not None:
        offload.serve(store)
    run, x = Run(store, method), torch.linspace(-1, 1, 32).view(4, 8).to(model.head.weight.dtype)
    records = [run.step(sequential(lambda: model(x))) for _ in range(steps)]
    return records, store.digest(), store


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("depth", [1, 2, 3, 6])
@pytest.mark.parametrize("method", ["zo_sgd", "fzoo", "zo_sign", "lozo"])
def test_steps_are_those_of_weights_on_the_device(method: str, depth: int, late: bool) -> None:
    make = methods.make(method, lr=1e-2)
    expected, digest, _ = trained(net(depth), None, make)
    model = net(depth)
    found, same, _ = trained(model, streamed(model, late=late), make)
    assert [r.losses for r in found] == [r.losses for r in expected]
    assert [r.vector for r in found] == [r.vector for r in expected]
    assert same == digest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_round_as_on_the_device(dtype: torch.dtype) -> None:
    make = methods.zo_sgd(lr=0.005, mu=0.1)
    expected, digest, _ = trained(net(3, dtype), None, make)
    model = net(3, dtype)
    found, same, _ = trained(model, streamed(model, late=True), make)
    assert [r.losses for r in found] == [r.losses for r in expected]
    assert same == digest
    assert expected[0].losses != expected[-1].losses


def test_a_move_waits_for_its_block_and_is_made_once() -> None:
    model = net(4)
    offload = streamed(model, late=True)
    _, _, store = trained(model, offload, methods.zo_sgd(lr=1e-2), steps=1)
    run = Run(store, methods.zo_sgd(lr=1e-2))
    x = torch.ones(1, 8)
    run.step(sequential(lambda: model(x)))
    waiting = {store.leaves[index].name for index in store.deferred._pending}
    assert waiting == {f"blocks.{k}.{part}.weight" for k in range(4) for part in ("inner", "outer")}
    seen: list[int] = []
    for k, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, k=k: seen.append(len(store.deferred._pending) - 2 * (3 - k)))
    model(x)
    assert seen == [0, 0, 0, 0]  # each block's moves were made when it began, those of later blocks not yet
    assert not store.deferred._pending


def test_only_the_block_that_runs_is_on_the_device_in_two_buffers() -> None:
    model = net(5)
    offload = streamed(model, late=False)
    homes = {p.data_ptr() for p in model.parameters()}
    where: list[tuple[int, set[int]]] = []

    def look(number: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            away = {p.data_ptr() for p in model.parameters()} - homes
            where.append((number, away))

        return hook

    for k, block in enumerate(model.blocks):
        block.norm.register_forward_hook(look(k))
    model(torch.ones(1, 8))
    assert [number for number, _ in where] == list(range(5))
    assert all(len(away) == 2 for _, away in where)
    assert len(set.union(*(away for _, away in where))) == 4  # two matrices in each of two buffers
    assert {p.data_ptr() for p in model.parameters()} == homes
    assert sum(b.numel() for b in offload.buffers) == 2 * 2 * (8 * 24 * 4)


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_who_reads_the_weights_in_between_finds_them_moved(late: bool) -> None:
    model, other = net(3), net(3)
    offload = streamed(model, late=late)
    runs = []
    for m, pages in ((model, offload), (other, None)):
        store = Store(dict(m.named_parameters()), pages=pages)
        runs.append((m, store, Run(store, methods.zo_sgd(lr=1e-2))))
    offload.serve(runs[0][1])
    x = torch.ones(2, 8)
    for step in range(4):
        for m, _, run in runs:
            run.step(sequential(lambda m=m: m(x)))
        ours, theirs = (store.state_dict() for _, store, _ in runs)
        if step % 2:
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert torch.equal(model(x), other(x))


def test_an_error_in_a_block_leaves_the_weights_in_memory() -> None:
    model = net(3)
    streamed(model, late=False)
    homes = [p.data_ptr() for p in model.parameters()]
    with pytest.raises(RuntimeError):
        model(torch.ones(1, 7))
    assert [p.data_ptr() for p in model.parameters()] == homes


def test_a_matrix_that_no_function_reads_is_perturbed_by_copy() -> None:
    """As on the device: found on the first query, and from then on written and copied back."""
    models = [net(2), net(2)]
    for m in models:
        m.blocks[0].spare = nn.Parameter(torch.ones(3, 3), requires_grad=False)  # type: ignore[union-attr]
    results = []
    for m, pages in ((models[0], None), (models[1], streamed(models[1], late=True))):
        with pytest.warns(UserWarning, match="did not read 1 of"):
            results.append(trained(m, pages, methods.zo_sgd(lr=1e-2)))
    assert results[0][1] == results[1][1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_the_steps_are_those_of_resident_weights(dtype: torch.dtype) -> None:
    def run(offloaded: bool) -> tuple[list[Any], str]:
        model = net(6, dtype)
        offload = Streamed(list(model.blocks), "cuda") if offloaded else None
        for p in model.parameters():
            if offload is None or p not in offload:
                p.data = p.data.cuda()
        store = Store(dict(model.named_parameters()), pages=offload)
        if offload is not None:
            offload.serve(store)
        x = torch.linspace(-1, 1, 32, device="cuda", dtype=dtype).view(4, 8)
        steps = Run(store, methods.zo_sgd(lr=1e-2))
        return [steps.step(sequential(lambda: model(x))).losses for _ in range(10)], store.digest()

    assert run(True) == run(False)
