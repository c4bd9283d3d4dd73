"""Quantize a dense model through another library while loading it, and load models that HQQ has saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zograd.quantized.library_layers import LibraryError

QUANTIZE = ("nf4", "int8-bnb", "int8-torchao", "int4-torchao", "hqq4")
"""Formats to which a dense model can be quantized on loading: bitsandbytes NF4 in blocks of 64 and int8 by row, torchao
int8 by row and int4 in groups of 32, HQQ 4-bit in groups of 64."""


def config_of(kind: str, dtype: torch.dtype) -> Any:
    """The quantization_config with which transformers quantizes a dense model to `kind`; None for HQQ (see `to_hqq`).

    Raises LibraryError for a kind that is not in `QUANTIZE`, ImportError if the library is missing.
    """
    if kind in ("nf4", "int8-bnb"):
        import bitsandbytes  # noqa: F401
        from transformers import BitsAndBytesConfig

        if kind == "int8-bnb":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if kind in ("int8-torchao", "int4-torchao"):
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
        from torchao.quantization.granularity import PerGroup
        from transformers import TorchAoConfig

        if kind == "int8-torchao":
            return TorchAoConfig(Int8WeightOnlyConfig())
        return TorchAoConfig(IntxWeightOnlyConfig(torch.int4, PerGroup(32)))  # type: ignore[attr-defined]
    if kind == "hqq4":
        import hqq.core.quantize  # noqa: F401

        return None
    raise LibraryError(f"there is no quantization {kind!r}; use {', '.join(QUANTIZE)}")


def to_hqq(model: Any, dtype: torch.dtype, device: str) -> None:
    """Quantize the linear layers of a dense model, except its head, in place: HQQ, 4 bits, groups of 64."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config, head = BaseQuantizeConfig(nbits=4, group_size=64, axis=1), model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not head:
            model.set_submodule(name, HQQLinear(module, config, compute_dtype=dtype, device=device))


def from_hqq(folder: str | Path, dtype: torch.dtype, device: str) -> Any:
    """A model that HQQ has saved: `config.json` and `qmodel.pt` (tensors only; no code in it is run).

    HQQ's loader rounds the rotary frequencies, which are in no file, to `dtype`; they are computed again here.
    """
    from accelerate import init_empty_weights
    from hqq.models.hf.base import AutoHQQHFModel
    from transformers import AutoModelForCausalLM

    with without_bars():
        model = AutoHQQHFModel.from_quantized(str(folder), compute_dtype=dtype, device=device)
    with init_empty_weights(include_buffers=False):
        fresh = AutoModelForCausalLM.from_config(model.config)
    kept = model.state_dict().keys()
    for name, buffer in fresh.named_buffers():
        if name not in kept:
            owner, _, key = name.rpartition(".")
            model.get_submodule(owner).register_buffer(key, buffer.to(device), persistent=False)
    return model


@contextmanager
def without_bars() -> Iterator[None]:
    """Inside, stderr is discarded: HQQ prints progress bars, without an option to hide them."""
    with redirect_stderr(StringIO()):
        yield
