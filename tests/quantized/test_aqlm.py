"""Layers of AQLM: codes into codebooks times a scale a row; the scales train, codes and codebooks never change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2
from torch import nn

from zograd import methods
from zograd.core.run import Run
from zograd.oracles import sequential
from zograd.quantized import libraries
from zograd.stores import Store

GROUP, BOOKS, SIZE = 8, 2, 16


class QuantizedLinear(nn.Module):
    """A layer as `aqlm` stores it, computed from the definition: codebooks of `SIZE` vectors of `GROUP` weights."""

    def __init__(self, dense: np.ndarray, seed: int = 0) -> None:
        super().__init__()
        self.out_features, self.in_features = dense.shape
        scales = np.abs(dense).mean(1)
        left = (dense / scales[:, None]).reshape(-1, GROUP)
        books, codes = [], []
        for k in range(BOOKS):  # each codebook quantizes what the ones before it leave
            book, code = kmeans2(left, SIZE, minit="++", seed=seed + k)
            books.append(book)
            codes.append(code)
            left = left - book[code]
        self.codebooks = nn.Parameter(torch.tensor(np.array(books)).float()[:, :, None], requires_grad=False)
        found = torch.tensor(np.array(codes)).T.reshape(self.out_features, -1, BOOKS).to(torch.int8)
        self.codes = nn.Parameter(found, requires_grad=False)
        self.scales = nn.Parameter(torch.tensor(scales).float().view(-1, 1, 1, 1), requires_grad=False)

    def matrix(self) -> torch.Tensor:
        groups = sum(self.codebooks[k, self.codes[..., k].long(), 0] for k in range(BOOKS))
        return groups.reshape(self.out_features, self.in_features) * self.scales.view(-1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix().T


def layer(rows: int = 12, columns: int = 32, seed: int = 0) -> tuple[QuantizedLinear, np.ndarray]:
    dense = np.random.default_rng(seed).standard_normal((rows, columns)) / columns**0.5
    return QuantizedLinear(dense, seed), dense


def test_layers_are_recognised_and_masters_change_nothing_until_they_move() -> None:
    one, dense = layer()
    assert np.linalg.norm(one.matrix().numpy() - dense) < 0.8 * np.linalg.norm(dense)  # it is a quantization of it
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    y, codes, books = one(x), one.codes.clone(), one.codebooks.clone()
    (handle,) = libraries.discover(nn.Sequential(one))
    assert (handle.library, handle.format, handle.groups, handle.group_size) == ("aqlm", "2x4-bit", 12, 32)
    scale = handle.masters()
    assert scale.shape == (12, 1)
    assert torch.equal(one(x), y)
    store = Store({"scale": scale}, space=methods.hozo().space)
    run = Run(store, methods.hozo(mu=2.0**-7), 0)
    with store.at(run.ask()[0].at):
        assert not torch.equal(one(x), y)
    assert torch.equal(one(x), y)
    scale.data[3] *= 2.0
    moved = (one(x) / y).mean(0)
    assert moved == pytest.approx([2.0 if row == 3 else 1.0 for row in range(12)])
    assert torch.equal(one.codes, codes)
    assert torch.equal(one.codebooks, books)
    with libraries.without_masters(one):
        assert one.state_dict()["scales"].shape == (12, 1, 1, 1)
        assert float(one.scales[3]) == pytest.approx(2 * float(y.new_tensor(np.abs(dense).mean(1)[3])))


@pytest.mark.parametrize("method", ["qzo", "hozo"])
def test_training_the_scales_lowers_the_loss_and_keeps_codes(method: str) -> None:
    """Two quantized layers fit data of a network whose rows have other scales."""
    layers = [layer(16, 16, 1)[0], layer(16, 16, 2)[0]]
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 16, generator=generator)
    grown = [torch.rand(len(q.scales), 1, generator=generator) + 0.5 for q in layers]
    wanted = torch.tanh(x @ (grown[0] * layers[0].matrix()).T) @ (grown[1] * layers[1].matrix()).T
    codes = [q.codes.clone() for q in layers]
    menu = {"qzo": methods.qzo(lr=1e-2), "hozo": methods.hozo(lr=3e-2)}[method]
    store = Store(libraries.masters(model), space=menu.space)
    run = Run(store, menu, 0)

    def loss() -> float:
        return float(((model(x) - wanted) ** 2).mean())

    before = loss()
    for _ in range(400):
        run.step(sequential(loss))
    assert loss() < 0.6 * before
    assert all(torch.equal(q.codes, c) for q, c in zip(layers, codes, strict=True))


def test_the_layer_of_the_package_computes_with_the_masters() -> None:
    """One codebook of 2^16 vectors runs on a CPU; the others need kernels."""
    aqlm = pytest.importorskip("aqlm", reason="pip install aqlm: not a dependency of the tests")
    one = aqlm.QuantizedLinear(32, 16, GROUP, 1, 1, 16, bias=False, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    one.codebooks.data.normal_(generator=generator)
    one.scales.data.uniform_(0.5, 1.5, generator=generator)
    one.codes.data = torch.randint(-(2**15), 2**15, one.codes.shape, generator=generator).to(torch.int16)
    x = torch.randn(9, 32, generator=generator)
    books = one.codebooks[0, one.codes[..., 0].long() % 2**16, 0].reshape(16, 32)
    (handle,) = libraries.discover(nn.Sequential(one))
    assert (handle.library, handle.format, handle.groups) == ("aqlm", "1x16-bit", 16)
    y = one(x)
    torch.testing.assert_close(y, x @ (books * one.scales.view(-1, 1)).T)
    scale = handle.masters()
    assert torch.equal(one(x), y)
    scale.data *= 2
    torch.testing.assert_close(one(x), 2 * y)
