"""Layers whose weights stay packed: blocks as they lie in the file, de-quantized tile by tile while they are used.

No kept library computes on packed GGUF blocks on a CPU from Python (transformers de-quantizes them on loading), hence
these two modules. A trained layer has float32 masters of its scales, the parameter `scale`; without them the float16
scales of the blocks are used, and the layer costs its bytes in the file and nothing else.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zograd.quantized.gguf_blocks import Format

TILE = 1 << 20
"""Weights that are de-quantized at a time (4 MiB of float32)."""

_scratch: dict[tuple[torch.dtype, torch.device], Tensor] = {}


def scratch(numel: int, like: Tensor) -> Tensor:
    """The workspace of all packed layers: one tile for each dtype and device."""
    key = (like.dtype, like.device)
    buffer = _scratch.get(key)
    if buffer is None or buffer.numel() < numel:
        with torch.inference_mode(False):
            buffer = _scratch[key] = torch.empty(numel, dtype=like.dtype, device=like.device)
    return buffer[:numel]


def storable(scales: Tensor, dtype: torch.dtype = torch.float16) -> Tensor:
    """Scales rounded to the dtype that a format stores, but not to 0 and not to infinity."""
    limits = torch.finfo(dtype)
    size = scales.abs().clamp(limits.smallest_normal * limits.eps, limits.max)
    return torch.where(scales == 0, 0.0, torch.sign(scales) * size).to(dtype)


class Packed(nn.Module):
    """A matrix of blocks: `blocks` uint8 [rows, bytes of a row], and masters of its scales when it is trained.

    Where s is the scale of a block, `scale` holds |s| in float32 (1 where s = 0), [rows, blocks of a row]. The sign, 0
    for a scale of 0, is kept outside in `sign` (None when every scale is positive), so that all of `scale` is positive,
    and what is 0 stays 0.

    Masters keep the steps that float16 would lose (its relative spacing is 2^-11 to 2^-10); the layer computes with
    them rounded to float16, so that what is evaluated is at every moment what can be stored. A probe of relative size
    mu is seen with an error of 2^-12 at most: mu = 2^-7 is fine, below 2^-10 it drowns.
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
        return self.blocks.shape[0]

    @property
    def groups(self) -> int:
        """Scales in a row."""
        return self.columns // self.form.size

    def masters(self) -> nn.Parameter:
        """The trained scales, made from those of the blocks when there are none yet: 4 bytes a block."""
        if self.scale is None:
            s = self.form.scales(self.blocks.view(-1)).view(self.rows, self.groups)
            if not bool((s > 0).all()):
                self.sign = torch.sign(s).to(torch.int8)
                s = torch.where(s == 0, 1.0, s.abs())
            self.scale = nn.Parameter(s, requires_grad=False)
        return self.scale

    def signed(self) -> Tensor | None:
        """The scales to compute with, [rows, groups] in float32; None when those of the blocks are meant."""
        if self.scale is None:
            return None
        s = storable(self.scale.float()).float()  # an optimizer that evaluates at another point shows it here
        return s if self.sign is None else s * self.sign

    def tile(self, out: Tensor, scales: Tensor | None, a: int, b: int) -> Tensor:
        """out <- rows a..b, de-quantized, [b - a, columns]."""
        some = None if scales is None else scales[a:b]
        return self.form.dequantize_(out, self.blocks[a:b].view(-1), some).view(b - a, self.columns)

    def extra_repr(self) -> str:
        trained = "" if self.scale is None else ", trained scales"
        return f"{self.columns} -> {self.rows}, {self.form}{trained}"


class PackedLinear(Packed):
    """y = x W^T + b with packed W. Memory above the blocks: one tile of `TILE` weights, shared by all layers."""

    bias: Tensor | None

    def __init__(self, form: Format, blocks: Tensor, columns: int, bias: Tensor | None = None) -> None:
        super().__init__(form, blocks, columns)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.in_features, self.out_features = columns, self.rows

    def forward(self, x: Tensor) -> Tensor:
        scales, rows = self.signed(), self.rows
        flat = x.reshape(-1, self.columns)
        out = flat.new_empty(flat.shape[0], rows)
        step = max(1, TILE // self.columns)
        for a in range(0, rows, step):
            b = min(a + step, rows)
            w = self.tile(scratch((b - a) * self.columns, flat), scales, a, b)
            torch.mm(flat, w.t(), out=out[:, a:b])
        y = out.view(*x.shape[:-1], rows)
        return y if self.bias is None else y + self.bias

    def lookup(self, ids: Tensor) -> Tensor:
        """The rows `ids` of W in float32, [len(ids), columns]: for scoring some tokens of a large vocabulary."""
        return rows_of(self, ids, torch.float32)


class PackedEmbedding(Packed):
    """Rows of a packed matrix, de-quantized when they are looked up, times `factor`, in `dtype`."""

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
    """The rows `ids` of a packed matrix."""
    scales = layer.signed()
    out = torch.empty(ids.numel(), layer.columns, dtype=dtype, device=layer.blocks.device)
    chosen = F.embedding(ids, layer.blocks)
    return layer.form.dequantize_(out, chosen.view(-1), None if scales is None else scales[ids])
