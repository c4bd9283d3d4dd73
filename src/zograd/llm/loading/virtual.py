"""Virtual tokens through peft: a soft prompt in front of the embeddings, or a prefix of keys and values."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel
from zograd.blockwise import Lookup
from zograd.llm.loading.errors import ModelError, extra, first_line
from zograd.llm.loading.structure import blocks, kind_of, plain_model, vocabulary

Part = Literal["prompt", "prefix"]
PARTS = ("prompt", "prefix")

SPREAD = 0.02
"""Standard deviation of the keys and values of a new prefix: so small that the model begins nearly as it was."""


def attach_virtual(model: PreTrainedModel, part: str, tokens: int, seed: int) -> nn.Module:
    """The model in peft's wrapper with `tokens` virtual tokens, in float32. The caller's random state does not change.

    part: "prompt" (Lester et al. 2021): embeddings in front of those of the text; they begin as the embeddings of
        tokens that the seed draws. "prefix" (Li and Liang 2021): keys and values in front of those of each layer,
        without a network that makes them; they begin close to 0.

    Raises ModelError for a model that is not causal, or that peft does not fit.

        attach_virtual(model, "prompt", 10, seed=0)
    """
    try:
        from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
    except ImportError as e:
        raise ModelError(extra("llm")) from e
    if kind_of(model) != "causal":
        raise ModelError(f"virtual tokens are for causal language models, and this is {type(model).__name__}")
    kind = PromptTuningConfig if part == "prompt" else PrefixTuningConfig
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            sizes = _sizes(model, part)
            wrapped: Any = get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=tokens, **sizes))
        except Exception as e:  # caches and configurations of many kinds
            raise ModelError(f"--train {part} does not fit {type(model).__name__}: {first_line(e)}") from e
        weight = embedding_of(wrapped).float().weight
        with torch.no_grad():
            if weight.device.type == "meta":
                pass
            elif part == "prompt":
                words = model.get_input_embeddings()
                drawn = torch.randint(vocabulary(model), (tokens,)).to(weight.device)
                weight.copy_(words(drawn))
            else:
                weight.normal_(0.0, SPREAD)
    module: nn.Module = wrapped.eval()
    return module


@torch.no_grad()
def _sizes(model: Any, part: str) -> dict[str, int]:
    """What peft has to know of a model, of which configurations have many spellings. Cost: one token, for a prefix."""
    words = model.get_input_embeddings()
    config = model.config.get_text_config()
    depth = len(blocks(model))
    if part == "prompt":
        width = getattr(words, "embedding_dim", None) or config.hidden_size
        return {"token_dim": int(width), "num_layers": depth, "num_attention_heads": 1}
    ids = torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
    keys = [layer.keys for layer in model(input_ids=ids, use_cache=True).past_key_values.layers]
    if len(keys) != depth or len({k.shape for k in keys}) > 1:
        raise ValueError("its layers do not all keep keys and values of one shape")
    _, heads, _, width = keys[0].shape
    return {"token_dim": heads * width, "num_layers": depth, "num_attention_heads": heads}


def embedding_of(model: Any) -> nn.Embedding:
    """The embedding that holds the virtual tokens of a model in peft's wrapper."""
    found: nn.Embedding = model.prompt_encoder[model.active_adapter].embedding
    return found


class Virtual:
    """The virtual tokens of a model as its forwards need them.

    A soft prompt stands in the embedding as tokens behind the vocabulary, `ids`, so that sequences with them are
    sequences like others. A prefix gives keys and values (`past`) to each row of a batch.
    """

    def __init__(self, model: Any) -> None:
        config = model.peft_config[model.active_adapter]
        self.part: Part = "prompt" if config.peft_type == "PROMPT_TUNING" else "prefix"
        self.embedding, self.config, self.base = embedding_of(model), config, plain_model(model)
        self.count = int(config.num_virtual_tokens)
        self.first = vocabulary(self.base)
        if self.part == "prompt":
            words = self.base.get_input_embeddings()
            self._handles = [
                words.register_forward_pre_hook(self._enter), words.register_forward_hook(self._leave)
            ]  # fmt: skip
            self._asked: Tensor | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """The token ids that stand for a soft prompt; none for a prefix."""
        return tuple(range(self.first, self.first + self.count)) if self.part == "prompt" else ()

    @property
    def lookup(self) -> Lookup:
        """Where the virtual tokens enter a forward: each sequence looks them up."""
        return Lookup(self.embedding, self._used if self.part == "prompt" else None)

    def _used(self) -> Tensor:
        """bool [rows, width]: the places of a soft prompt in the forward under way."""
        assert self._asked is not None
        return self._asked >= self.first

    def _enter(self, _: nn.Module, args: tuple[Any, ...]) -> Any:
        ids = args[0]
        self._asked = ids if bool((ids >= self.first).any()) else None
        return None if self._asked is None else (ids.clamp(max=self.first - 1), *args[1:])

    def _leave(self, _: nn.Module, __: Any, output: Tensor) -> Any:
        if self._asked is None:
            return None
        virtual = self.embedding((self._asked - self.first).clamp(min=0))
        return torch.where(self._used()[..., None], virtual.to(output.dtype), output)

    def past(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a batch [rows, width] behind a prefix: its keys and values, and the mask over both."""
        from transformers import DynamicCache

        mask = inputs["attention_mask"]
        rows, c = len(mask), self.config
        found = self.embedding(torch.arange(self.count, device=mask.device).expand(rows, -1))
        heads = c.num_attention_heads
        parts = found.to(self.base.dtype).view(rows, self.count, 2 * c.num_layers, heads, c.token_dim // heads)
        parts = parts.permute(2, 0, 3, 1, 4)
        cache = DynamicCache(config=self.base.config)
        for layer in range(c.num_layers):
            cache.update(parts[2 * layer], parts[2 * layer + 1], layer)
        return inputs | {
            "past_key_values": cache,
            "attention_mask": torch.cat([mask.new_ones(rows, self.count), mask], 1),
        }


def virtual_of(model: Any) -> Virtual | None:
    """The virtual tokens of a model in peft's wrapper; None for a model without any. Made once for a model."""
    if not hasattr(model, "prompt_encoder"):
        return None
    if "zograd_virtual" not in vars(model):
        vars(model)["zograd_virtual"] = Virtual(model)
    found: Virtual = vars(model)["zograd_virtual"]
    return found
