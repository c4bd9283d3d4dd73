"""Loading a causal language model, and choosing which of its tensors are trained.

model, tokenizer = loading.load("smollm2-135m")
trained = loading.select(model, "*.q_proj.weight")
"""

from __future__ import annotations

from zograd.llm.loading.errors import ModelError, UnknownDtypeError, extra, first_line
from zograd.llm.loading.lora import LoraSpec, attach_lora
from zograd.llm.loading.models import DTYPES, auto_class_of, configuration_of, dtype_named, is_bare, load, silence
from zograd.llm.loading.selection import decay_groups, is_scales, select
from zograd.llm.loading.structure import blocks, head_of, kind_of, plain_model, vocabulary
from zograd.llm.loading.virtual import PARTS, Virtual, attach_virtual, virtual_of

__all__ = [
    "DTYPES", "PARTS", "LoraSpec", "ModelError", "UnknownDtypeError", "Virtual", "attach_lora", "attach_virtual",
    "auto_class_of", "blocks", "configuration_of", "decay_groups", "dtype_named", "extra", "first_line", "head_of",
    "is_bare", "is_scales", "kind_of", "load", "plain_model", "select", "silence", "virtual_of", "vocabulary",
]  # fmt: skip
