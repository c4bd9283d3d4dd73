"""Tiny random models of many families of transformers, made without any download."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CAUSAL = [
    "qwen2", "qwen3", "gpt_neox", "gpt2", "opt", "opt-post-norm", "mamba", "mixtral", "phi", "phi3", "gemma", "falcon",
    "bloom", "mpt",
]  # fmt: skip
"""Families that predict the next token."""


def config_of(name: str, vocabulary: int) -> Any:
    """A configuration of 2 blocks, width 32."""
    import transformers as t

    sizes: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    grouped = {**sizes, "num_key_value_heads": 2}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    opt = {k: v for k, v in sizes.items() if k != "intermediate_size"} | {"ffn_dim": 64, "word_embed_proj_dim": 32}
    configs: dict[str, Callable[[], Any]] = {
        "llama": lambda: t.LlamaConfig(**grouped),
        "qwen2": lambda: t.Qwen2Config(**grouped),
        "qwen3": lambda: t.Qwen3Config(**grouped, head_dim=8),
        "gpt_neox": lambda: t.GPTNeoXConfig(**sizes),
        "gpt2": lambda: t.GPT2Config(
            vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=128, **ends
        ),
        "opt": lambda: t.OPTConfig(**opt),
        "opt-post-norm": lambda: t.OPTConfig(**opt, do_layer_norm_before=False),
        "mamba": lambda: t.MambaConfig(
            vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, state_size=4, **ends
        ),
        "mixtral": lambda: t.MixtralConfig(**grouped, num_local_experts=2, num_experts_per_tok=2),
        "phi": lambda: t.PhiConfig(**grouped),
        "phi3": lambda: t.Phi3Config(**grouped),
        "gemma": lambda: t.GemmaConfig(**grouped, head_dim=8),
        "falcon": lambda: t.FalconConfig(
            vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=False, **ends
        ),
        "bloom": lambda: t.BloomConfig(vocab_size=vocabulary, hidden_size=32, n_layer=2, n_head=4, **ends),
        "mpt": lambda: t.MptConfig(
            vocab_size=vocabulary, d_model=32, n_heads=4, n_layers=2, expansion_ratio=2, max_seq_len=128
        ),
        "t5": lambda: t.T5Config(
            vocab_size=vocabulary, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0,
            eos_token_id=2, decoder_start_token_id=0,
        ),
        "bert": lambda: t.BertConfig(**sizes),
        "albert": lambda: t.AlbertConfig(**sizes, embedding_size=32),
        "vit": lambda: t.ViTConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16,
            patch_size=8, num_labels=2,
        ),
    }  # fmt: skip
    return configs[name]()


def family(name: str, vocabulary: int = 64, auto: str = "AutoModelForCausalLM", seed: int = 3, **more: Any) -> Any:
    """A random model of one family in float32 and eval mode, as a class of transformers builds it; biases, too."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = config_of(name, vocabulary)
        for key, value in more.items():
            setattr(config, key, value)
        model = getattr(transformers, auto).from_config(config)
        for p in model.parameters():
            p.data += 0.02 * torch.randn(p.shape)
    return model.eval()


def with_marks(tokenizer: Any) -> Any:
    """A copy of a tokenizer of words that writes <cls> text <sep>, and knows a mask."""
    from tokenizers.processors import TemplateProcessing

    new = copy.deepcopy(tokenizer)
    new.add_special_tokens({"cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>"})
    ends = [(token, new.convert_tokens_to_ids(token)) for token in ("<cls>", "<sep>")]
    new._tokenizer.post_processor = TemplateProcessing(single="<cls> $A <sep>", special_tokens=ends)
    return new


def saved(path: Path, name: str, tokenizer: Any, auto: str = "AutoModelForCausalLM", **more: Any) -> Path:
    """The folder of such a model, with a tokenizer."""
    family(name, len(tokenizer), auto, **more).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
