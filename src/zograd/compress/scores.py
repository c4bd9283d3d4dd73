"""Which weights of linear layers matter, from the weights and from what enters the layers; masks of the best ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from zograd.laws.inputs import token_rows
from zograd.patterns import searching


def floor_of(share: float, n: float) -> int:
    """floor(share x n) of the decimal number that was meant, within 1e-9: 0.29 * 100 is 28.999999999999996.

    >>> floor_of(0.29, 100)
    29
    """
    return int(share * n + 1e-9)


def linear_layers(model: nn.Module, pattern: str = "") -> dict[str, nn.Linear]:
    """The linear layers of a model by name, of which the regular expression finds something in the name.

    Layers whose weight another module reads too (an embedding that is also the output) are left out. ValueError where
    none is left.

    >>> list(linear_layers(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), pattern="2"))
    ['2']
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            owners[id(p)] = owners.get(id(p), 0) + 1
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and owners[id(module.weight)] == 1
    }
    wanted = searching(pattern, found)
    chosen = {name: module for name, module in found.items() if name in wanted}
    if not chosen:
        known = ", ".join(list(found)[:4]) or "none"
        raise ValueError(
            f"no linear layer (torch.nn.Linear) of {type(model).__name__} matches {pattern!r}; it has {known}, ..."
        )
    return chosen


def activation_norms(
    layers: Mapping[str, nn.Module],
    forwards: Iterable[Callable[[], object]],
    filled: Callable[[], Tensor | None] = lambda: None,
) -> dict[str, Tensor]:
    """float64 [inputs] by layer: |X_j|_2 of each input column j, over all rows that enter the layer in the forwards.

    forwards: each is called once, and evaluates the model on a batch in whatever way. filled: after a forward began,
    which positions [rows, width] hold tokens; others are left out (None: all are read). No gradient is taken. Memory:
    a number an input of each layer. ValueError for a layer that no forward reached.
    """
    squares: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        @torch.no_grad()
        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = token_rows(args[0].detach(), filled())
            squares[name] = squares.get(name, torch.zeros((), dtype=torch.float64)) + x.double().square().sum(0).cpu()

        return enter

    with ExitStack() as stack:
        for name, module in layers.items():
            stack.callback(module.register_forward_pre_hook(hook(name)).remove)
        with torch.no_grad():
            for forward in forwards:
                forward()
    if missing := [name for name in layers if name not in squares]:
        raise ValueError(
            f"no forward reached {missing[0]} (and {len(missing) - 1} others); pass forwards that use the layers, or "
            f"leave the layers out"
        )
    return {name: squares[name].sqrt() for name in layers}


def magnitude(w: Tensor) -> Tensor:
    """|W|, float64 [outputs, inputs]: what is known without data."""
    return w.detach().double().abs()


def wanda(w: Tensor, norms: Tensor) -> Tensor:
    """|W_ij| |X_j|_2, float64 [outputs, inputs]: Sun et al. 2023 (arXiv 2306.11695), Eq. 1.

    norms: `activation_norms` of the layer. ValueError for norms of another length.

    >>> wanda(torch.tensor([[1.0, -2.0]]), torch.tensor([3.0, 1.0])).tolist()
    [[3.0, 2.0]]
    """
    if norms.shape != w.shape[1:]:
        raise ValueError(f"W has {w.shape[1]} inputs, the norms have shape {tuple(norms.shape)}; pass one an input")
    return magnitude(w) * norms.to(w.device, torch.float64)


def task_aware(w: Tensor, general: Tensor, task: Tensor, *, shared: float = 0.5) -> Tensor:
    """Wanda's score with norms fused from general text and from a task: float64 [outputs, inputs].

    Both norms are divided by their means. The `shared` share of columns in which they differ least take the mean of the
    two, the others the larger one. The split of columns by the difference is that of arXiv 2510.22489; this way of
    fusing is ours. ValueError for a share outside [0, 1] and norms of other lengths.

    >>> task_aware(torch.ones(1, 2), torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]), shared=0.0).tolist()
    [[1.0, 1.5]]
    """
    if not 0.0 <= shared <= 1.0:
        raise ValueError(f"shared is a share of the columns, in [0, 1], got {shared}")
    if general.shape != task.shape or not (general.sum() > 0 and task.sum() > 0):
        raise ValueError(f"norms of shape {tuple(general.shape)} and {tuple(task.shape)}; pass two alike, not all zero")
    a, b = (norms.double() / norms.double().mean() for norms in (general, task))
    apart = (a - b).abs()
    common = torch.zeros(len(a), dtype=torch.bool)
    common[apart.argsort(stable=True)[: round(shared * len(a))]] = True
    return wanda(w, torch.where(common, (a + b) / 2, torch.maximum(a, b)))


def prune_(layers: Mapping[str, nn.Linear], scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Set the floor(sparsity x inputs) weights of least score in each row to 0, in place; the masks of what stays.

    scores: [outputs, inputs] by the names of the layers. Of equal scores the earlier column goes first. The masks are
    boolean, by the name of the weight (NAME.weight): `laws.Scores(masks)` with density=1 trains what is left.

    ValueError, before a weight changes, for a sparsity outside [0, 1), missing scores, or other shapes.
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity is the share of weights that become 0, in [0, 1), got {sparsity}")
    for name, layer in layers.items():
        if name not in scores:
            raise ValueError(f"there are no scores for {name}; there are some for {', '.join(list(scores)[:3])}")
        if scores[name].shape != layer.weight.shape:
            raise ValueError(
                f"the scores of {name} have shape {tuple(scores[name].shape)}, its weight {tuple(layer.weight.shape)}"
            )
    masks = {}
    for name, layer in layers.items():
        mask = torch.ones(layer.weight.shape, dtype=torch.bool, device=layer.weight.device)
        n = layer.weight.shape[1]
        gone = min(floor_of(sparsity, n), n - 1)  # sparsity < 1
        mask.scatter_(1, scores[name].to(mask.device).argsort(dim=1, stable=True)[:, :gone], False)
        with torch.no_grad():
            layer.weight.mul_(mask)
        masks[f"{name}.weight"] = mask
    return masks
