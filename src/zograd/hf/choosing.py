"""What a forward-only Trainer trains, by which method and at which rate, and the line that says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from zograd import methods
from zograd.blockwise import Call, adds_to_its_input, record
from zograd.core.method import Method
from zograd.errors import UsageError
from zograd.estimators import FromBlocks
from zograd.learning_rate.auto import as_controller
from zograd.llm.loading.errors import ModelError, first_line
from zograd.llm.loading.structure import blocks, plain_model, vocabulary
from zograd.methods.defaults import FULL, LORA, Shape, language_model

TRIED = 8
"""Tokens of the forward that shows what the blocks of a model do."""

OF_ARGUMENTS = "learning_rate of TrainingArguments"

FAR = 100.0
"""A rate of the arguments that is so many times the menu's is warned of: one for Adam in the place of another's."""


@dataclass(frozen=True)
class Parts:
    """Which of the trained tensors get a gradient from blocks: those inside of them, and those behind the last one.

    tail: the names of the latter. outside: the names of all others.
    """

    blocks: Sequence[nn.Module] = ()
    inside: Mapping[str, Tensor] = field(default_factory=dict)
    tail: Sequence[str] = ()
    outside: Sequence[str] = ()

    @property
    def numbers(self) -> list[int]:
        """The numbers of the blocks with trained tensors."""
        owners = {id(p): number for number, block in enumerate(self.blocks) for p in block.parameters()}
        return sorted({owners[id(tensor)] for tensor in self.inside.values()})


@dataclass(frozen=True)
class Choice:
    """A method, the tensors that it trains, and why. rate: where the learning rate comes from.

    parts: where gradients come from blocks.
    """

    method: Method[Any]
    tensors: Mapping[str, Tensor]
    why: str
    rate: str
    parts: Parts = field(default_factory=Parts)

    def line(self, model: nn.Module) -> str:
        """'training 24 tensors (54,000 weights) of LlamaForCausalLM by residual, lr 0.0002 (...), because ...'."""
        weights = sum(tensor.numel() for tensor in self.tensors.values())
        controller, outside = self.method.controller, self.parts.outside
        lr = "auto" if controller.measures else f"{controller.rate({}, 0):.3g}"
        left = f"{', '.join(outside[:2])}{', ...' if len(outside) > 2 else ''}"
        return (
            f"training {len(self.tensors)} tensors ({weights:,} weights) of {type(plain_model(model)).__name__} by "
            f"{self.method.name}, lr {lr} ({self.rate}), because {self.why}"
            f"{f'; not trained, since not in the blocks: {left}' if outside else ''}"
        )


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that require grad, by name: what PEFT or the user left trainable. All, where none does."""
    named: dict[str, Tensor] = dict(model.named_parameters())
    chosen = {name: p for name, p in named.items() if p.requires_grad}
    return chosen or named


def choose(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    method: str | Method[Any] | None,
    lr: float | str | None,
    of_arguments: float | None,
) -> Choice:
    """The method for these tensors of a model.

    method: a name of the menu, a method, or None: residual feedback where the blocks of the model add to the stream of
        hidden states and hold what is trained, but for what stands behind them and, where the whole model is trained,
        its embeddings and its output; otherwise `zo_sgd` with lr="auto".
    lr: in place of the method's. of_arguments: the `learning_rate` that the user set, which names of the menu take.

    Raises UsageError for a method that does not fit the model. Costs, where blocks are tried: one forward of 8 tokens
    or one image, and one more of each block.
    """
    why, parts = "you asked for it", Parts()
    if method is None:
        found = parts_of(model, tensors, residual=True)
        refusal = found if isinstance(found, str) else why_not_all(model, tensors, found)
        method = "zo_sgd" if refusal else "residual"
        why = refusal or "its blocks add to the stream of hidden states, and the loss has a derivative behind them"
        parts = parts if isinstance(found, str) or refusal else found
    elif needs_blocks(method):
        name = method if isinstance(method, str) else method.name
        found = parts_of(model, tensors, residual=name.endswith("residual"))
        if isinstance(found, str):
            raise UsageError(f"method={name!r} does not fit: {found}. Use method='zo_sgd', or None for a choice")
        if name not in ("residual", "forward_residual", "backprop"):
            raise UsageError(
                f"method={name!r} needs the loss of each example, and a Trainer gives their mean; use 'residual', or "
                f"zograd train"
            )
        parts = found
    made, rate = built(method, tensors, lr, of_arguments, shape_of(model, parts))
    if not parts.blocks:
        return Choice(made, tensors, why, rate)
    kept = {name: tensor for name, tensor in tensors.items() if name not in parts.outside}
    return Choice(made, kept, why, rate, parts)


def needs_blocks(method: str | Method[Any]) -> bool:
    """Whether a method takes gradients from the blocks of a model."""
    if isinstance(method, str):
        return bool(methods.describe(method)["needs"] == "blocks")
    return isinstance(method.estimator, FromBlocks)


def shape_of(model: nn.Module, parts: Parts) -> Shape | None:
    """The width of a model and the number of its trained blocks, for the learning rate; None where it is not known."""
    config = getattr(plain_model(model), "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    width, depth = getattr(text, "hidden_size", None), len(parts.numbers)
    return Shape(width, depth) if isinstance(width, int) and depth else None


def built(
    method: str | Method[Any],
    tensors: Mapping[str, Tensor],
    lr: float | str | None,
    of_arguments: float | None,
    shape: Shape | None,
) -> tuple[Method[Any], str]:
    """(the method with its learning rate, where that rate comes from). Raises UsageError, and ValueError of the menu.

    A name of the menu takes lr, or else the rate of the arguments, or else lr="auto" where its rate can be measured, or
    else the menu's for the part that is trained. A `Method` keeps its own rate unless `lr` is given.
    """
    if not isinstance(method, str):
        if lr is None:
            return method, "the method's"
        return replace(method, lr=as_controller(lr, method.rule.automatic)), "as given"
    if missing := methods.describe(method)["required"]:
        raise UsageError(
            f"method={method!r} has no default for {', '.join(missing)}; pass zograd.methods.{method}({missing[0]}=...)"
        )
    onto = LORA if any("lora_" in name for name in tensors) else FULL
    default: dict[str, Any] = dict(language_model(method, onto, shape))
    for wanted, where in ((lr, "as given"), (of_arguments, OF_ARGUMENTS)):
        if wanted is not None:
            return methods.make(method, **(default | {"lr": wanted})), where
    if "lr" in default:
        with suppress(ValueError):  # its rate cannot be measured
            return methods.make(method, **(default | {"lr": "auto"})), "measured"
    where = "the method's" if shape is None else f"for {shape.blocks} blocks of width {shape.width}"
    return methods.make(method, **default), f"{where}, since learning_rate was not set"


def far(method: Method[Any]) -> str | None:
    """A warning of a rate far above the menu's for this method; None where there is nothing to say."""
    if method.controller.measures or method.name not in methods.names():
        return None
    usual = methods.describe(method.name)["defaults"].get("lr")
    peak = method.controller.rate({}, 0)
    if not isinstance(usual, float) or peak <= FAR * usual:
        return None
    return (
        f"lr={peak:g} is {peak / usual:,.0f} times what {method.name} takes for all weights of a language model "
        f"({usual:g}); rates for Adam are too large here. Use lr='auto', or lr={usual:g}"
    )


def parts_of(model: nn.Module, tensors: Mapping[str, Tensor], *, residual: bool) -> Parts | str:
    """The trained tensors by where they stand; or, as a clause, why gradients cannot come from the blocks.

    residual: each block must add to the stream of hidden states.
    """
    base: Any = plain_model(model)
    if getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        return "the model has an encoder and a decoder"
    try:
        found = list(blocks(base))
    except ModelError:
        return "the model has no list of blocks"
    owned = {id(p) for block in found for p in block.parameters()}
    inside = {name: tensor for name, tensor in tensors.items() if id(tensor) in owned}
    if not inside:
        return "what is trained lies outside of the blocks"
    parts = Parts(found, inside, (), [name for name in tensors if name not in inside])
    ends = {id(p) for module in _ends(base) for p in module.parameters()}
    candidates = {name: tensors[name] for name in parts.outside if id(tensors[name]) not in ends}
    call = _tried(model, base, parts, list(candidates.values()))
    if isinstance(call, str):
        return call
    for number in range(parts.numbers[0], len(found)) if residual else ():
        if not _adds(model, found[number], call, number):
            return (
                f"block {number} of {type(base).__name__} does not add to the hidden states that enter it (a norm "
                f"behind the sum)"
            )
    tail = [name for name, gradient in zip(candidates, call.tail, strict=True) if bool(gradient.any())]
    return replace(parts, tail=tail, outside=[name for name in parts.outside if name not in tail])


def _ends(base: Any) -> list[nn.Module]:
    """The embeddings and the output matrix of a language model, which methods that look at blocks do not train."""
    found = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        with suppress(Exception):  # models without: some raise, some have none
            found.append(getattr(base, name)())
    return [module for module in found if isinstance(module, nn.Module)]


def why_not_all(model: nn.Module, tensors: Mapping[str, Tensor], parts: Parts) -> str | None:
    """Why residual feedback is not the default though the blocks allow it: it would leave out what the user chose."""
    if not parts.outside or len(tensors) == len(list(model.parameters())):
        return None
    return f"{parts.outside[0]} is trained too, and has no gradient from blocks"


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Inside, forwards keep no keys and values, with which a block could not be run twice."""
    config: Any = getattr(plain_model(model), "config", None)
    before = getattr(config, "use_cache", None)
    try:
        if before is not None:
            config.use_cache = False
        yield
    finally:
        if before is not None:
            config.use_cache = before


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode, nothing requires grad, and keys and values are not kept."""
    required, training = [p for p in model.parameters() if p.requires_grad], model.training
    try:
        model.requires_grad_(False).eval()
        with without_cache(model):
            yield
    finally:
        model.train(training)
        for p in required:
            p.requires_grad_(True)


def _tried(model: nn.Module, base: Any, parts: Parts, tail: Sequence[Tensor]) -> Call | str:
    """What one forward shows, or why there is none."""
    try:
        with _still(model):
            _, (call, *_) = record(
                lambda: _of_little(model, base), parts.blocks, parts.numbers[0], keep=True, tail=tail
            )
        return call
    except Exception as e:  # any model may come here, with any code
        return f"its blocks could not be tried ({type(e).__name__}: {first_line(e)[:100]})"


def _adds(model: nn.Module, block: nn.Module, call: Call, number: int) -> bool:
    with _still(model):
        return adds_to_its_input(block, call, number)


def _of_little(model: nn.Module, base: Any) -> Tensor:
    """A number from the outputs of a model for a few tokens, or for an empty image."""
    device = next(base.parameters()).device
    inputs: dict[str, Any] = {}
    if getattr(base, "main_input_name", "input_ids") == "pixel_values":
        size = base.config.image_size
        shape = (1, base.config.num_channels, *((size, size) if isinstance(size, int) else size))
        inputs["pixel_values"] = torch.zeros(shape, device=device, dtype=base.dtype)
    else:
        ids = torch.arange(1, TRIED + 1, device=device)[None] % vocabulary(base)
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return model(**inputs)[0].float().mean()  # type: ignore[no-any-return]
