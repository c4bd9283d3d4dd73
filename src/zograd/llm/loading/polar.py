"""PoLAR adapters (arXiv 2506.03133): W + s X T Y^T, where X and Y have orthonormal columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zograd.llm.loading.errors import ModelError
from zograd.llm.loading.lora import LoraSpec, attach_lora, linear_names, named, refuse_tied, targets_of
from zograd.llm.loading.structure import blocks
from zograd.sets.base import one_thread
from zograd.spaces import Euclidean, Product, Stiefel

SPACE = Product({"*.polar_x": Stiefel("polar"), "*.polar_y": Stiefel("polar"), "*": Euclidean()})
"""Where the factors live: X and Y on Stiefel manifolds, T and everything else anywhere."""


class Polar(nn.Module):
    """W x + s X T (Y^T x) in place of a linear layer W: X [out, r] and Y [in, r] orthonormal, T [r, r] free.

    base_layer: the layer. r: at most the smaller side of W. scale: s. dtype: of the factors. generator: draws X and Y
    uniformly; T is 0, so the layer begins as it was. The factors of a layer on the meta device have no values.

    Cost of a forward: r (in + out + r) products a token beside those of the layer. Raises ModelError for a larger r.
    """

    def __init__(
        self, base_layer: nn.Module, r: int, scale: float, dtype: torch.dtype, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.turned = not hasattr(base_layer, "in_features")  # Conv1D keeps [in, out]
        rows, columns = sizes(base_layer)
        if r > min(rows, columns):
            raise ModelError(
                f"--lora-r {r}: {r} orthonormal columns do not fit a layer of {columns} inputs and {rows} outputs; "
                f"use at most {min(rows, columns)}, or leave such layers out of --lora-targets"
            )
        device = next(base_layer.parameters(), next(base_layer.buffers(), torch.empty(0))).device
        self.base_layer, self.scale = base_layer, scale
        self.polar_x = nn.Parameter(orthonormal(rows, r, generator).to(device, dtype))
        self.polar_t = nn.Parameter(torch.zeros(r, r, dtype=dtype, device=device))
        self.polar_y = nn.Parameter(orthonormal(columns, r, generator).to(device, dtype))

    @property
    def weight(self) -> Any:
        """That of the layer: some models ask for its dtype."""
        return self.base_layer.weight

    @property
    def bias(self) -> Any:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base_layer(x)
        inner = F.linear(x.to(self.polar_t.dtype) @ self.polar_y, self.polar_t)
        return out + F.linear(inner, self.polar_x).mul(self.scale).to(out.dtype)

    @torch.no_grad()
    def get_delta_weight(self, adapter: str = "default") -> Tensor:
        """s X T Y^T in the layout of the layer's weight; named as in peft's layers, which have several adapters."""
        found = self.scale * (self.polar_x @ self.polar_t @ self.polar_y.mT)
        return found.mT if self.turned else found


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: of torch, of a library with quantized ones, packed, or Conv1D."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D) or (hasattr(module, "in_features") and hasattr(module, "out_features"))


def sizes(layer: Any) -> tuple[int, int]:
    """(outputs, inputs) of a linear layer; Conv1D has its weight the other way round."""
    if hasattr(layer, "in_features"):
        return int(layer.out_features), int(layer.in_features)
    inputs, outputs = layer.weight.shape
    return int(outputs), int(inputs)


def orthonormal(n: int, r: int, generator: torch.Generator) -> Tensor:
    """float64 [n, r]: columns that are orthonormal and uniform on the manifold, the Q of a matrix of normal numbers."""
    with torch.device("cpu"), one_thread():
        q, upper = torch.linalg.qr(torch.randn(n, r, generator=generator, dtype=torch.float64))
        found: Tensor = (q * upper.diagonal().sign()).contiguous()
        return found


def attach_polar(model: Any, spec: LoraSpec, seed: int) -> nn.Module:
    """Put adapters on the linear layers that `spec` names; X and Y are drawn from `seed`, T is 0, s is alpha / r.

    The model is changed and returned. The factors are float32, or float64 in a float64 model. The caller's random state
    does not change. Raises ModelError if no linear layer has a name of `spec.targets`, for a rank above a side of a
    layer, and for a layer that shares its weight with another module; then the model is as it was.
    """
    targets = spec.targets or tuple(targets_of(model))
    top: list[nn.Module] = [model] if spec.layers is None else list(blocks(model))[-spec.layers :]
    within = {id(m) for part in top for m in part.modules()}
    chosen = {
        name: module
        for name, module in model.named_modules()
        if id(module) in within and named(name, targets) and is_linear(module)
    }
    if not chosen:
        raise ModelError(
            f"no linear layer of {type(model).__name__} that may get an adapter is named "
            f"{' or '.join(map(repr, targets))}; its linear layers are {', '.join(linear_names(model))}. Name some of "
            f"them in --lora-targets, or leave it out"
        )
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    made = {name: Polar(m, spec.r, spec.alpha / spec.r, dtype, generator) for name, m in chosen.items()}
    for name, layer in made.items():
        model.set_submodule(name, layer)
    try:
        refuse_tied(model)
    except ModelError:
        for name, layer in made.items():
            model.set_submodule(name, layer.base_layer)
        raise
    module: nn.Module = model.eval()
    return module


def polar_layers(model: nn.Module) -> Iterator[tuple[str, Polar]]:
    """The layers with adapters, by name."""
    for name, module in model.named_modules():
        if isinstance(module, Polar):
            yield name, module


@torch.no_grad()
def merge_polar(model: Any) -> Any:
    """The model with each adapter added to its weight, W <- W + s X T Y^T rounded to W's dtype."""
    for name, layer in list(polar_layers(model)):
        w: Tensor = layer.weight
        w.copy_((w.to(layer.polar_x.dtype) + layer.get_delta_weight()).to(w.dtype))
        model.set_submodule(name, layer.base_layer)
    return model


@torch.no_grad()
def as_lora(model: Any) -> Any:
    """The model with LoRA adapters of peft in place of these: B = X T and A = Y^T have the same product.

    For layers whose weights are no numbers that could be added to: packed and quantized ones.
    """
    found = dict(polar_layers(model))
    if not found:
        return model
    for name, layer in found.items():
        model.set_submodule(name, layer.base_layer)
    first = next(iter(found.values()))
    r = len(first.polar_t)
    wrapped: Any = attach_lora(model, LoraSpec(r, first.scale * r, tuple(found)), 0)
    for name, layer in found.items():
        adapter = wrapped.get_base_model().get_submodule(name)
        adapter.lora_B["default"].weight.copy_(layer.polar_x @ layer.polar_t)
        adapter.lora_A["default"].weight.copy_(layer.polar_y.mT)
    return wrapped


def stable_rank(matrix: Tensor) -> float:
    """|M|_F^2 / |M|_2^2, between 1 and the rank: how many directions share what M does.

    nan for M = 0, and where M is not finite.

    >>> stable_rank(torch.diag(torch.tensor([2.0, 1.0])))
    1.25
    """
    if not bool(matrix.isfinite().all()):
        return math.nan
    sigma = torch.linalg.svdvals(matrix.double())
    return float(sigma.square().sum() / sigma[0].square())


@torch.no_grad()
def stable_ranks(model: nn.Module) -> dict[str, float]:
    """The stable rank of what each adapter adds to its weight, LoRA or PoLAR, by the name of its layer.

    Of the r x r matrix that has the same singular values, so no product has the size of a weight. Not finite for an
    adapter that adds nothing.
    """
    found: dict[str, float] = {}
    for name, module in model.named_modules():
        layer: Any = module
        if isinstance(module, Polar):
            outer, inner = module.polar_x @ module.polar_t, module.polar_y
        elif "default" in getattr(layer, "lora_B", ()):
            outer, inner = layer.lora_B["default"].weight, layer.lora_A["default"].weight.mT
        else:
            continue
        left, right = (torch.linalg.qr(m.detach().double().cpu()).R for m in (outer, inner))
        found[name] = stable_rank(left @ right.mT)
    return found
