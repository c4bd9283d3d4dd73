"""Loading a causal language model, and choosing which of its tensors are trained.

model, tokenizer = loading.load("smollm2-135m")
trained = loading.select(model, "*.q_proj.weight")
"""

from __future__ import annotations

from zograd.llm.loading.errors import ModelError, UnknownDtypeError, extra, first_line
from zograd.llm.loading.lora import LoraSpec, attach_lora
from zograd.llm.loading.models import (
    DTYPES,
    auto_class_of,
    check_device,
    configuration_of,
    dtype_named,
    import_transformers,
    is_bare,
    load,
    silence,
    takes_no_text,
)
from zograd.llm.loading.polar import as_lora, attach_polar, merge_polar, polar_layers, stable_ranks
from zograd.llm.loading.selection import ADAPTERS, decay_groups, is_scales, select
from zograd.llm.loading.structure import blocks, head_of, kind_of, name_classes, plain_model, vocabulary
from zograd.llm.loading.virtual import PARTS, Virtual, attach_virtual, virtual_of

__all__ = [
    "ADAPTERS", "DTYPES", "PARTS", "LoraSpec", "ModelError", "UnknownDtypeError", "Virtual", "as_lora", "attach_lora",
    "attach_polar", "attach_virtual", "auto_class_of", "blocks", "check_device", "configuration_of", "decay_groups",
    "dtype_named", "extra", "first_line", "head_of", "import_transformers", "is_bare", "is_scales", "kind_of", "load",
    "merge_polar", "name_classes", "plain_model", "polar_layers", "select", "silence", "stable_ranks", "takes_no_text",
    "virtual_of", "vocabulary",
]  # fmt: skip
