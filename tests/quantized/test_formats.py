"""Block formats: the weights are those of the package gguf, bit for bit, compiled or not, with or without masters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zograd.quantized import native
from zograd.quantized.gguf_blocks import FORMATS, Format

gguf = pytest.importorskip("gguf")

by_format = pytest.mark.parametrize("form", FORMATS.values(), ids=str)
compiled = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])


def random_blocks(form: Format, n: int = 300, seed: int = 0) -> torch.Tensor:
    """Random bytes with finite scales and mins, zero and negative ones among them."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (n, form.bytes), dtype=np.uint8)
    for at in (form.scale_at, form.min_at):
        if at is not None:
            values = rng.normal(size=n).astype(np.float16)
            values[:3] = 0.0, -0.0, 6e-8
            raw[:, at : at + 2] = values.view(np.uint8).reshape(n, 2)
    return torch.from_numpy(raw.reshape(-1))


@pytest.fixture
def engine(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("the compiled kernels are not built")


@by_format
@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_are_those_of_gguf(form: Format, compiled: bool, engine: None, dtype: torch.dtype) -> None:
    blocks = random_blocks(form)
    expected = gguf.dequantize(blocks.view(-1, form.bytes).numpy(), gguf.GGMLQuantizationType(form.number))
    out = torch.empty(300 * form.size, dtype=dtype)
    form.dequantize_(out, blocks)
    torch.testing.assert_close(out, torch.from_numpy(expected.reshape(-1)).to(dtype), rtol=0, atol=0)
    assert form.name == gguf.GGMLQuantizationType(form.number).name
    assert (form.size, form.bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(form.number)]


@by_format
@compiled
def test_masters_take_the_place_of_scales_and_mins(form: Format, compiled: bool, engine: None) -> None:
    """De-quantizing with the scales of other blocks is de-quantizing blocks that hold those scales."""
    blocks, other = random_blocks(form), random_blocks(form, seed=1)
    d, m = form.scales(other), form.mins(other)
    moved = form.put_scales_(blocks.clone(), d)
    assert torch.equal(form.scales(moved), d)
    if m is not None:
        moved.view(-1, form.bytes)[:, form.min_at : form.min_at + 2] = m.to(torch.float16).view(-1, 1).view(torch.uint8)
    out = torch.empty(2, 300 * form.size)
    form.dequantize_(out[0], blocks, d, m)
    form.dequantize_(out[1], moved)
    assert torch.equal(out[0], out[1])


@by_format
def test_writing_scales_changes_no_integer(form: Format) -> None:
    blocks = random_blocks(form)
    moved = form.put_scales_(blocks.clone(), form.scales(blocks) * 1.5)
    changed = (moved != blocks).view(-1, form.bytes).any(0).nonzero().view(-1).tolist()
    assert set(changed) <= {form.scale_at, form.scale_at + 1}
    assert changed
    same = form.put_scales_(blocks.clone(), form.scales(blocks))
    assert torch.equal(same, blocks)


@by_format
def test_threads_do_not_change_a_bit(form: Format) -> None:
    blocks, before = random_blocks(form, 5000), torch.get_num_threads()
    out = torch.empty(2, 5000 * form.size)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            form.dequantize_(out[threads - 1], blocks)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(out[0], out[1])


def test_a_wrong_size_is_named() -> None:
    with pytest.raises(ValueError, match="300 blocks of Q4_1 hold 9600 weights, out has 7"):
        FORMATS[3].dequantize_(torch.empty(7), random_blocks(FORMATS[3]))
