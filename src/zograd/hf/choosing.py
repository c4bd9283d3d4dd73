"""What a forward-only Trainer trains, by which method and at which rate, and the line that says so."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn

from zograd import methods
from zograd.core.method import Method
from zograd.errors import UsageError
from zograd.estimators import FromBlocks
from zograd.learning_rate.auto import as_controller
from zograd.llm.loading.structure import plain_model
from zograd.llm.parts import OUTSIDE, Parts, parts_of
from zograd.methods.defaults import FULL, LORA, Shape, language_model

OF_ARGUMENTS = "learning_rate of TrainingArguments"

FAR = 100.0
"""A rate of the arguments that is so many times the menu's is warned of: one for Adam in the place of another's."""


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

    def line(self, model: nn.Module, resumed_lr: float | None = None) -> str:
        """'training 24 tensors (54,000 weights) of LlamaForCausalLM by residual, lr 0.0002 (...), because ...'.

        resumed_lr: the rate of a checkpoint, where it is another one.
        """
        weights = sum(tensor.numel() for tensor in self.tensors.values())
        controller, outside = self.method.controller, self.parts.outside
        lr = "auto" if controller.measures else f"{controller.rate({}, 0):.3g}"
        lr = f"{lr} ({self.rate})" if resumed_lr is None else f"{resumed_lr:.3g} (of the checkpoint)"
        where = ", since not in the blocks" if self.method.name == "residual" else ""
        left = f"{', '.join(outside[:2])}{', ...' if len(outside) > 2 else ''}"
        return (
            f"training {len(self.tensors)} tensors ({weights:,} weights) of {type(plain_model(model)).__name__} by "
            f"{self.method.name}, lr {lr}, because {self.why}"
            f"{f'; not trained{where}: {left}' if outside else ''}"
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

    method: a name of the menu, a method, or None: `residual` where the blocks of the model add to the stream of hidden
        states, only the last four of them are trained, for which it is exact, and nothing else but what stands
        behind them (and, where the whole model is trained, its embeddings and its output, which are left out).
        `backprop` with states that are computed again where lower ones are trained. Where the whole model is trained
        and blocks do not add (BERT), `backprop` on the last block and what stands behind it; where `backprop` has the
        gradient of all that is trained (adapters, a model whose embeddings are frozen, a head), on all of it.
        Otherwise `zo_sgd` with lr="auto".
    lr: in place of the method's. of_arguments: the `learning_rate` that the user set, which names of the menu take.

    Raises UsageError for a method that does not fit the model. Costs, where blocks are tried: one forward of 8 tokens
    or one image, and one more of each block.
    """
    made = Default("", Parts(), "you asked for it")
    if method is None:
        made = default_of(model, tensors)
        method = made.method
    elif needs_blocks(method):
        name = method if isinstance(method, str) else method.name
        estimator = methods.make(method).estimator if isinstance(method, str) else method.estimator
        assert isinstance(estimator, FromBlocks)
        found = parts_of(model, tensors, residual=estimator.adds, front=estimator.reaches_front)
        if isinstance(found, str):
            raise UsageError(f"method={name!r} does not fit: {found}. Use method='zo_sgd', or None for a choice")
        if estimator.kind == "nodes":
            raise UsageError(
                f"method={name!r} needs the loss of each example, and a Trainer gives their mean; use 'residual', or "
                f"zograd train"
            )
        made = made._replace(parts=found)
    parts, shape = made.parts, shape_of(model, made.parts)
    shape = shape if shape is None else shape._replace(adds=made.adds)
    built_method, rate = built(method, tensors, lr, of_arguments, shape, made.settings)
    if not parts.blocks:
        return Choice(built_method, tensors, made.why, rate)
    kept = {name: tensor for name, tensor in tensors.items() if name not in parts.outside}
    return Choice(built_method, kept, made.why, rate, parts)


class Default(NamedTuple):
    """A method by its name, the parts of a model that it trains, and why. adds: whether blocks add to the stream."""

    method: str
    parts: Parts
    why: str
    adds: bool = True
    settings: Mapping[str, Any] = MappingProxyType({})


def default_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> Default:
    """The method where none is given; see `choose`."""
    again = "most hidden states are computed again to save memory"
    found = parts_of(model, tensors, residual=True)
    refusal = found if isinstance(found, str) else why_not_all(model, tensors, found)
    adds = isinstance(found, Parts) or found == OUTSIDE
    if isinstance(found, Parts) and not refusal:
        if not found.deep:
            why = "its blocks add to the stream of hidden states, and the loss has a derivative behind them"
            return Default("residual", found, why)
        whole = parts_of(model, tensors, residual=False, front=True)
        parts = whole if isinstance(whole, Parts) else found
        return Default("backprop", parts, f"it is the exact gradient of all blocks; {again}", True, {"recompute": True})
    exact = parts_of(model, tensors, residual=False) if isinstance(found, str) else found
    if isinstance(exact, Parts) and is_whole(model, tensors):
        return Default("backprop", exact.last(), f"{refusal}: the derivative of its last block is exact", adds)
    if isinstance(exact, Parts) and not why_not_all(model, tensors, exact):
        why = f"{refusal}: the derivative of its blocks is exact"
        return Default("backprop", exact, why, adds, {"recompute": exact.deep})
    whole = parts_of(model, tensors, residual=False, front=True)
    if isinstance(whole, Parts) and not why_not_all(model, tensors, whole):
        why = f"it is the exact gradient of all that is trained{f'; {again}' if whole.deep else ''}"
        return Default("backprop", whole, why, adds, {"recompute": whole.deep})
    return Default("zo_sgd", Parts(), refusal or "")


def needs_blocks(method: str | Method[Any]) -> bool:
    """Whether a method takes gradients from the blocks of a model."""
    if isinstance(method, str):
        return bool(methods.describe(method)["needs"] == "blocks")
    return isinstance(method.estimator, FromBlocks)


def shape_of(model: nn.Module, parts: Parts) -> Shape | None:
    """What Adam's learning rate depends on: width, trained blocks, and whether tokens are learned. None: not known."""
    config = getattr(plain_model(model), "config", None)
    text = getattr(config, "get_text_config", lambda: config)()
    width, depth = getattr(text, "hidden_size", None), len(parts.numbers) or int(bool(parts.tail or parts.front))
    texts = False
    with suppress(Exception):  # models without an output matrix: some raise, some have none
        texts = plain_model(model).get_output_embeddings() is not None
    return Shape(width, depth, texts=texts) if isinstance(width, int) and depth else None


def built(
    method: str | Method[Any],
    tensors: Mapping[str, Tensor],
    lr: float | str | None,
    of_arguments: float | None,
    shape: Shape | None,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Method[Any], str]:
    """(the method with its learning rate, where that rate comes from). Raises UsageError, and ValueError of the menu.

    A name of the menu takes lr, or else the rate of the arguments, or else lr="auto" where its rate can be measured
    from the points of a step, or else the menu's for the part that is trained. A `Method` keeps its own rate unless
    `lr` is given.
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
    default: dict[str, Any] = {**language_model(method, onto, shape), **settings}
    for wanted, where in ((lr, "as given"), (of_arguments, OF_ARGUMENTS)):
        if wanted is not None:
            return methods.make(method, **(default | {"lr": wanted})), where
    if "lr" in default:
        with suppress(ValueError):  # its rate cannot be measured
            made = methods.make(method, **(default | {"lr": "auto"}))
            if not made.rule.preconditions:  # Adam's rate is measured on request: that takes points of its own
                return made, "measured"
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


def is_whole(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether all of a model is trained, but for positions that it keeps fixed itself (the encoder of Whisper)."""
    trained = {id(t) for t in tensors.values()}
    positions = [m for n, m in model.named_modules() if isinstance(m, nn.Embedding) and "position" in n]
    fixed = {id(p) for module in positions for p in module.parameters()}
    return all(id(p) in trained or id(p) in fixed for p in model.parameters())


def why_not_all(model: nn.Module, tensors: Mapping[str, Tensor], parts: Parts) -> str | None:
    """Why residual feedback is not the default though the blocks allow it: it would leave out what the user chose."""
    if not parts.outside or is_whole(model, tensors):
        return None
    return f"{parts.outside[0]} is trained too, and has no gradient from blocks"
