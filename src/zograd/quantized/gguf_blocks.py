"""Block formats of GGUF: where the scale of a block is, and what its integers mean.

A row of a tensor is a row of blocks: `size` weights in `bytes` bytes each. A block has one float16 scale d, and in the
asymmetric formats one float16 min m. The rest are integers, which zograd never changes. In the "K" formats they include
second-level scales s_j and mins m_j of the parts of a block:

    Q4_0 w = d (q - 8)      Q4_1 w = d q + m        Q8_0 w = d q
    Q5_0 w = d (q - 16)     Q5_1 w = d q + m        Q6_K w = d s_j (q - 32)
    Q4_K, Q5_K w = d s_j q - m m_j

Source: the block structs of ggml (ggml-common.h) and the reference de-quantization of the package `gguf`. Tests compare
these functions with it bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zograd.quantized import native

Values = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(blocks [n, bytes], d [n, 1], m [n, 1] or None) -> float32 weights [n, size]."""


@dataclass(frozen=True)
class Format:
    """A block format: its number in GGUF, weights and bytes of a block, and the byte offsets of its scale and min."""

    name: str
    number: int
    size: int
    bytes: int
    scale_at: int
    min_at: int | None
    values: Values

    def __str__(self) -> str:
        return self.name

    def scales(self, blocks: Tensor) -> Tensor:
        """float32 [n]: d of each block of `blocks`, uint8 [n * bytes]."""
        return self._halves(blocks, self.scale_at)

    def mins(self, blocks: Tensor) -> Tensor | None:
        """float32 [n]: m of each block; None in symmetric formats."""
        return None if self.min_at is None else self._halves(blocks, self.min_at)

    def _halves(self, blocks: Tensor, at: int) -> Tensor:
        return blocks.view(-1, self.bytes)[:, at : at + 2].contiguous().view(torch.float16).view(-1).float()

    def put_scales_(self, blocks: Tensor, scales: Tensor) -> Tensor:
        """Write d of each block, rounded to float16. No other byte changes."""
        halves = scales.to(torch.float16).view(-1, 1).view(torch.uint8)
        blocks.view(-1, self.bytes)[:, self.scale_at : self.scale_at + 2] = halves
        return blocks

    def dequantize_(
        self, out: Tensor, blocks: Tensor, scales: Tensor | None = None, mins: Tensor | None = None
    ) -> Tensor:
        """out <- the weights of `blocks` (uint8), with scales and mins of the blocks or in float32 tensors.

        Cost: one pass over the blocks. The compiled kernel needs no memory; the torch fallback needs several times the
        memory of `out`. Raises ValueError for an `out` of another size.
        """
        n = blocks.numel() // self.bytes
        if out.numel() != n * self.size:
            raise ValueError(f"{n} blocks of {self.name} hold {n * self.size} weights, out has {out.numel()}")
        if native.library() is not None and blocks.device.type == "cpu" and out.dtype in native.DTYPES:
            native.dequantize(out, self.number, self.size, blocks, scales, mins)
            return out
        d = self.scales(blocks) if scales is None else scales
        m = self.mins(blocks) if mins is None else mins
        w = self.values(blocks.view(n, self.bytes), d.view(n, 1), None if m is None else m.view(n, 1))
        return out.copy_(w.view(out.shape))


def _nibbles(q: Tensor) -> Tensor:
    return torch.cat([q & 15, q >> 4], 1)


def _fifth_bits(blocks: Tensor, at: int) -> Tensor:
    """The fifth bits of the 32 integers of a block, as 0 or 16."""
    bits = blocks[:, at : at + 4, None] >> torch.arange(8, device=blocks.device) & 1
    return bits.view(-1, 32) << 4


def _six_bits(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Second-level scales and mins [n, 8] of 6 bits, packed into the 12 bytes from byte 4."""
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([a & 63, c & 15 | (a >> 6) << 4], 1)
    mins = torch.cat([b & 63, c >> 4 | (b >> 6) << 4], 1)
    return scales.float(), mins.float()


def _k(q: Tensor, blocks: Tensor, d: Tensor, m: Tensor | None) -> Tensor:
    """Weights of blocks with 8 parts of 32 integers q [n, 8, 32]."""
    assert m is not None
    s, low = _six_bits(blocks)
    return ((d * s)[:, :, None] * q.float() - (m * low)[:, :, None]).view(-1, 256)


def _q4_0(b: Tensor, d: Tensor, m: Tensor | None) -> Tensor:
    return d * (_nibbles(b[:, 2:]).float() - 8)


def _q4_1(b: Tensor, d: Tensor, m: Tensor | None) -> Tensor:
    assert m is not None
    return d * _nibbles(b[:, 4:]).float() + m


def _q5_0(b: Tensor, d: Tensor, m: Tensor | None) -> Tensor:
    return d * ((_nibbles(b[:, 6:]) | _fifth_bits(b, 2)).float() - 16)


def _q5_1(b: Tensor, d: Tensor, m: Tensor | None) -> Tensor:
    assert m is not None
    return d * (_nibbles(b[:, 8:]) | _fifth_bits(b, 4)).float() + m


def _q8_0(b: Tensor, d: Tensor, m: Tensor | None) -> Tensor:
    return d * b[:, 2:].contiguous().view(torch.int8).float()


def _q4_k(b: Tensor, d: Tensor, m: Tensor | None) -> Tensor:
    q = b[:, 16:].view(-1, 4, 1, 32)
    return _k(torch.cat([q & 15, q >> 4], 2).reshape(-1, 8, 32), b, d, m)


def _q5_k(b: Tensor, d: Tensor, m: Tensor | None) -> Tensor:
    q = b[:, 48:].view(-1, 4, 1, 32)
    fifth = b[:, 16:48].view(-1, 1, 32) >> torch.arange(8, device=b.device).view(1, 8, 1) & 1
    return _k(torch.cat([q & 15, q >> 4], 2).reshape(-1, 8, 32) | fifth << 4, b, d, m)


def _q6_k(b: Tensor, d: Tensor, m: Tensor | None) -> Tensor:
    low = b[:, :128].view(-1, 2, 1, 64)
    low = torch.cat([low & 15, low >> 4], 2).view(-1, 2, 4, 32)
    high = b[:, 128:192].view(-1, 2, 1, 32) >> torch.arange(0, 8, 2, device=b.device).view(1, 1, 4, 1) & 3
    s = b[:, 192:208].contiguous().view(torch.int8).float()  # of 16 weights each, in their order
    return ((d * s)[:, :, None] * ((low | high << 4).view(-1, 16, 16).float() - 32)).view(-1, 256)


FORMATS = {
    f.number: f
    for f in (
        Format("Q4_0", 2, 32, 18, 0, None, _q4_0),
        Format("Q4_1", 3, 32, 20, 0, 2, _q4_1),
        Format("Q5_0", 6, 32, 22, 0, None, _q5_0),
        Format("Q5_1", 7, 32, 24, 0, 2, _q5_1),
        Format("Q8_0", 8, 32, 34, 0, None, _q8_0),
        Format("Q4_K", 12, 256, 144, 0, 2, _q4_k),
        Format("Q5_K", 13, 256, 176, 0, 2, _q5_k),
        Format("Q6_K", 14, 256, 210, 208, None, _q6_k),
    )
}
"""The formats by their number in GGUF (`gguf.GGMLQuantizationType`)."""
