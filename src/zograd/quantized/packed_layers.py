"""Layers with packed weights: GGUF blocks as in the file, de-quantized tile by tile when they are used.

No maintained library computes on packed GGUF blocks on a CPU from Python (transformers de-quantizes them on loading),
hence these two modules. A trained layer has float32 masters of its scales, the parameter `scale`. Without masters the
float16 scales of the blocks are used, and the layer takes the memory of its bytes in the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zograd.quantized.gguf_blocks import Format

TILE = 1 << 20
"""Number of weights that are de-quantized at a time (4 MiB of float32)."""

_scratch: dict[tuple[torch.dtype, torch.device], Tensor] = {}


def scratch(numel: int, like: Tensor) -> Tensor:
    """The workspace that all packed layers share: one tile for each dtype and device."""
    key = (like.dtype, like.device)
    buffer = _scratch.get(key)
    if buffer is None or buffer.numel() < numel:
        with torch.inference_mode(False):
            buffer = _scratch[key] = torch.empty(numel, dtype=like.dtype, device=like.device)
    return buffer[:numel]


def storable(scales: Tensor, dtype: torch.dtype = torch.float16) -> Tensor:
    """Scales rounded to the dtype of a format; a nonzero scale becomes neither 0 nor infinite.

    >>> storable(torch.tensor([0.0, 1e-9, 1e9])).tolist()
    [0.0, 5.960464477539063e-08, 65504.0]
    """
    limits = torch.finfo(dtype)
    size = scales.abs().clamp(limits.smallest_normal * limits.eps, limits.max)
    return torch.where(scales == 0, 0.0, torch.sign(scales) * size).to(dtype)


class Packed(nn.Module):
    """A matrix of blocks: `blocks` uint8 [rows, bytes of a row], with masters of its scales if it is trained.

    For block scales s, `scale` holds |s| in float32 (1 where s = 0), [rows, blocks of a row]. `sign` holds the signs (0
    where s = 0; None if all scales are positive). So `scale` is positive everywhere, and a scale of 0 stays 0.

    Masters keep steps that float16 would lose (its relative spacing is 2^-11 to 2^-10). The layer computes with masters
    rounded to float16, so every evaluated point can be stored in the file. The rounding changes a probe of relative
    size mu by 2^-12 at most: mu = 2^-7 is fine; below 2^-10 rounding hides the probe.
    """

    blocks: Tensor
    sign: Tensor | None
    scale: nn.Parameter | None

    def __init__(self, form: Format, blocks: Tensor, columns: int) -> None:
        super().__init__()
        self.form, self.columns = form, columns
        self.register_buffer("blocks", blocks)
        self.register_buffer("sign", None)
        self.register_parameter("scale", None)

    @property
    def rows(self) -> int:
        """Number of rows of the matrix."""
        return self.blocks.shape[0]

    @property
    def groups(self) -> int:
        """Number of scales in a row."""
        return self.columns // self.form.size

    def masters(self) -> nn.Parameter:
        """The trained scales; the first call makes them from those of the blocks. Memory: 4 bytes for each block."""
        if self.scale is None:
            s = self.form.scales(self.blocks.view(-1)).view(self.rows, self.groups)
            if not bool((s > 0).all()):
                self.sign = torch.sign(s).to(torch.int8)
                s = torch.where(s == 0, 1.0, s.abs())
            self.scale = nn.Parameter(s, requires_grad=False)
        return self.scale

    @torch.no_grad()
    def signed(self) -> Tensor | None:
        """The scales to compute with, float32 [rows, groups]; None without masters: those of the blocks."""
        if self.scale is None:
            return None
        s = storable(self.scale.float()).float()  # under a lens, this read gives the evaluated point
        return s if self.sign is None else s * self.sign

    def tile(self, out: Tensor, scales: Tensor | None, a: int, b: int, mins: Tensor | None = None) -> Tensor:
        """out <- rows a to b, de-quantized, [b - a, columns]; scales and mins of all rows, or None: of the blocks."""
        some, low = (None if t is None else t[a:b] for t in (scales, mins))
        return self.form.dequantize_(out, self.blocks[a:b].view(-1), some, low).view(b - a, self.columns)

    def extra_repr(self) -> str:
        trained = "" if self.scale is None else ", trained scales"
        return f"{self.columns} -> {self.rows}, {self.form}{trained}"


class PackedLinear(Packed):
    """y = x W^T + b with packed W. Memory besides the blocks: one tile of `TILE` weights, which all layers share."""

    bias: Tensor | None

    def __init__(self, form: Format, blocks: Tensor, columns: int, bias: Tensor | None = None) -> None:
        super().__init__(form, blocks, columns)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.in_features, self.out_features = columns, self.rows

    @property
    def qweight(self) -> Tensor:
        """The blocks, under the name by which peft finds the device of a quantized layer."""
        return self.blocks

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.columns)
        derived = torch.is_grad_enabled() and (x.requires_grad or (self.scale is not None and self.scale.requires_grad))
        out: Tensor = _Product.apply(flat, self.scale, self) if derived else self.product(flat)  # type: ignore[no-untyped-call]
        y = out.view(*x.shape[:-1], self.rows)
        return y if self.bias is None else y + self.bias

    def product(self, x: Tensor) -> Tensor:
        """x W^T, [n, rows], for x [n, columns]."""
        out = x.new_empty(x.shape[0], self.rows)
        for a, b, w in self.tiles(x, self.signed()):
            torch.mm(x, w.t(), out=out[:, a:b])
        return out

    def tiles(
        self, like: Tensor, scales: Tensor | None, mins: Tensor | None = None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """(a, b, rows a to b of W) in the shared workspace, in the dtype of `like`."""
        step = max(1, TILE // self.columns)
        for a in range(0, self.rows, step):
            b = min(a + step, self.rows)
            yield a, b, self.tile(scratch((b - a) * self.columns, like), scales, a, b, mins)

    def lookup(self, ids: Tensor) -> Tensor:
        """The rows `ids` of W in float32, [len(ids), columns]: for scoring some tokens of a large vocabulary."""
        return rows_of(self, ids, torch.float32)


class _Product(torch.autograd.Function):
    """y = x W^T with w = s q + (terms without s): dL/dx = dL/dy W, and dL/ds = the sum of (dL/dy^T x) q over a block.

    The rounding of s to float16 counts as the identity. A tile of W and one of dL/dW are in memory at a time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None, layer: PackedLinear) -> Tensor:
        ctx.layer, ctx.of_scale = layer, scale is not None and scale.requires_grad
        ctx.save_for_backward(*([x] if ctx.of_scale else []))
        return layer.product(x.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        layer, (g,) = ctx.layer, grads
        of_x = of_scale = None
        if ctx.needs_input_grad[0]:
            of_x = g.new_zeros(g.shape[0], layer.columns)
            for a, b, w in layer.tiles(g, layer.signed()):
                of_x.addmm_(g[:, a:b], w)
        if ctx.of_scale:
            (x,) = ctx.saved_tensors
            of_scale = torch.empty(layer.rows, layer.groups, device=g.device)
            sign = torch.ones_like(of_scale) if layer.sign is None else layer.sign.float()
            zeros = None if layer.form.min_at is None else torch.zeros_like(of_scale)
            for a, b, q in layer.tiles(g, sign, zeros):
                of_scale[a:b] = (g[:, a:b].t() @ x).mul_(q).view(b - a, layer.groups, -1).float().sum(2)
        return of_x, of_scale, None


class PackedEmbedding(Packed):
    """An embedding in a packed matrix: rows are de-quantized to `dtype` when they are looked up, times `factor`."""

    factor: Tensor | None

    def __init__(
        self, form: Format, blocks: Tensor, columns: int, dtype: torch.dtype, factor: Tensor | None = None
    ) -> None:
        super().__init__(form, blocks, columns)
        self.dtype = dtype
        self.num_embeddings, self.embedding_dim = self.rows, columns
        self.register_buffer("factor", factor, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        y = rows_of(self, ids.reshape(-1), self.dtype).view(*ids.shape, self.columns)
        return y if self.factor is None else y * self.factor.to(y.dtype)


def rows_of(layer: Packed, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows `ids` of a packed matrix, [len(ids), columns] in `dtype`."""
    scales = layer.signed()
    out = torch.empty(ids.numel(), layer.columns, dtype=dtype, device=layer.blocks.device)
    chosen = F.embedding(ids, layer.blocks)
    return layer.form.dequantize_(out, chosen.view(-1), None if scales is None else scales[ids])
