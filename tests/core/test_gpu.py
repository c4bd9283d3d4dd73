"""On a CUDA device: the same noise bits as on the CPU, and queries that leave no trace. `make test-gpu`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zograd import methods
from zograd.core.run import Run
from zograd.noise import Kind, Term, combine
from zograd.oracles import sequential
from zograd.stores import Store

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [Kind.SIGN, Kind.NORMAL])
def test_noise_has_the_bits_of_the_cpu(kind: Kind, dtype: torch.dtype) -> None:
    here = torch.linspace(-1, 1, 5000).to(dtype)
    there = here.cuda()
    for x in (here, there):
        combine(x, x, terms=[Term(kind, 12345, 2.0**-10)], leaf=3, start=77)
    assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_change_no_bit_and_steps_move(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 8)).to("cuda", dtype)
    x = torch.randn(16, 64, device="cuda", dtype=dtype)
    store = Store(dict(model.named_parameters()))
    before = store.digest()
    oracle = sequential(lambda: model(x).float().square().mean())
    Run(store, methods.zo_sgd(lr=0.0)).step(oracle)
    assert store.digest() == before
    Run(store, methods.zo_sgd(lr=1e-2)).step(oracle)
    assert store.digest() != before
