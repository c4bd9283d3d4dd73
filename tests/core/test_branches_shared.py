"""Law: a tensor that all branches share is no batch of branches, whatever the length of its first axis."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zograd.core.query import Query
from zograd.core.vector import Noise, Vector
from zograd.noise import Kind
from zograd.oracles import batched, sequential
from zograd.stores import Store

ROWS, WIDTH = 3, 4


class Rows(nn.Module):
    """Rows of a matrix and a bias by some indices, as label words are scored."""

    def __init__(self, index: list[int], trained: str) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 10)
        self.index, self.trained = torch.tensor(index), trained

    def forward(self, x: Tensor) -> Tensor:
        rows = F.embedding(self.index, self.head.weight)
        return F.linear(x, rows, self.head.bias[self.index])


class Slices(nn.Module):
    """A bias from which a part is taken, in front of a product with a matrix made of weights alone."""

    trained = "bias|weight"

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.weight = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(4, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch.tanh(self.weight), self.bias[2:6])


class Positions(nn.Module):
    """Learned positions, looked up by indices without an axis for the batch."""

    trained = "table"

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x[..., None] + self.table(torch.arange(x.shape[1])))


class Kinds(Positions):
    """The same with indices that are all equal: nothing tells whose they are."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x[..., None] + self.table(torch.zeros(x.shape[1], dtype=torch.int64)))


class Elementwise(nn.Module):
    """A trained tensor of as many rows as there are branches meets one of the same shape that is not trained."""

    trained = "gain"

    def __init__(self, rows: int, frozen: bool) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(rows, WIDTH))
        other = torch.randn(rows, WIDTH)
        self.other = nn.Parameter(other) if frozen else nn.Buffer(other)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, None] * (self.gain * self.other)


class Vectors(nn.Module):
    """A trained vector and a frozen one of the same length, before the activation."""

    trained = "shift"

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.shift, other = nn.Parameter(torch.randn(WIDTH)), torch.randn(WIDTH)
        self.other = nn.Parameter(other) if frozen else nn.Buffer(other)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x + (self.other + self.shift))


class Norms(nn.Module):
    """Norms of which the gain is trained, and the bias and running means are not."""

    trained = "layer.weight|batch.weight"

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.batch = nn.LayerNorm(WIDTH), nn.BatchNorm1d(WIDTH)
        self.batch.running_mean.normal_()

    def forward(self, x: Tensor) -> Tensor:
        return self.batch(self.layer(x))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "rows, all trained": lambda: Rows([1, 5, 7, 2], "head"),
    "rows, bias trained": lambda: Rows([1, 5, 7, 2], "bias"),
    "two rows, bias trained": lambda: Rows([1, 5], "bias"),
    "slices": Slices,
    "positions": Positions,
    "equal indices": Kinds,
    "2 rows by a buffer": lambda: Elementwise(2, False),
    "4 rows by a buffer": lambda: Elementwise(4, False),
    "4 rows by a parameter": lambda: Elementwise(4, True),
    "vector by a buffer": lambda: Vectors(False),
    "vector by a parameter": lambda: Vectors(True),
    "norms": Norms,
}


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_losses_are_those_of_one_at_a_time(name: str, n: int) -> None:
    """In float64, at points so far apart that a wrong one is seen; where nothing tells them apart, one at a time."""
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    wanted = model.trained.split("|")
    store = Store({k: p for k, p in model.named_parameters() if any(w in k for w in wanted)})
    x = torch.randn(ROWS, WIDTH, dtype=torch.float64)

    def losses(copies: int) -> Tensor:
        return (model(x.repeat(copies, 1)).flatten(1).cos().sum(1)).view(copies, -1).mean(1)

    z = [Vector(((Noise(Kind.NORMAL, 7 + k), 0.3),)) for k in range(n // 2)]
    queries = [Query(point) for one in z for point in (one, -one)]
    alone = sequential(lambda: losses(1).sum())(store, queries, 0)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        together = batched(losses, n)(store, queries, 0)
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), rtol=0, atol=1e-7)
    assert max(alone) - min(alone) > 1e-3
    assert bool(given) == (name == "equal indices")
