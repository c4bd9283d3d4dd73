"""LoRA adapters through peft, drawn from a seed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel
from zograd.llm.loading.errors import ModelError, extra, first_line
from zograd.llm.loading.structure import blocks, kind_of


@dataclass(frozen=True)
class LoraSpec:
    """LoRA as in peft: W + (alpha / r) B A, on the modules `targets` of the top `layers` blocks (None: all blocks).

    targets: names of modules; none: `targets_of` the model.
    """

    r: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    layers: int | None = None


def attach_lora(model: PreTrainedModel, spec: LoraSpec, seed: int) -> nn.Module:
    """Insert adapters through peft: A is drawn from `seed`, B is 0. The caller's random state does not change.

    Raises ModelError if no module has a name of `spec.targets`, or if a target shares its weight with another module.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as e:
        raise ModelError(extra("llm")) from e
    if spec.targets and not any(named(name, spec.targets) for name, _ in model.named_modules()):
        raise ModelError(
            f"no module of {type(model).__name__} is named {' or '.join(map(repr, spec.targets))}; its linear layers "
            f"are {', '.join(linear_names(model))}. Name some of them in --lora-targets, or leave it out"
        )
    depth = len(blocks(model))
    top = depth if spec.layers is None else min(spec.layers, depth)
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,
        lora_dropout=0.0,
        target_modules=list(spec.targets or targets_of(model)),
        layers_to_transform=None if top == depth else list(range(depth - top, depth)),
        task_type={"causal": "CAUSAL_LM", "pairs": "SEQ_2_SEQ_LM"}.get(kind_of(model)),
    )
    take_packed(config)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            wrapped: nn.Module = get_peft_model(model, config)
        except ValueError as e:
            raise ModelError(f"LoRA does not fit this model: {first_line(e)}") from e
    refuse_tied(wrapped)
    return wrapped.eval()


UNREAD = ("out_proj", "conv1d", "dt_proj", "x_proj")
"""Modules of state-space blocks whose weights compiled kernels read past the modules, so adapters would not act."""


def targets_of(model: nn.Module) -> list[str]:
    """The modules that get adapters where none are named: peft's own for the architecture, else all linear layers.

    The latter are those inside of the blocks. Raises ModelError for a model without any.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as OF_PEFT

    kind = getattr(getattr(model, "config", None), "model_type", "")
    chosen = tuple(OF_PEFT.get(kind) or ())
    inside = linear_names(blocks(model))
    if any(named(name, chosen) for name, _ in model.named_modules()):
        return list(chosen)
    if "mamba" in kind:
        inside = [name for name in inside if name not in UNREAD]
    if not inside:
        raise ModelError(f"{type(model).__name__} has no linear layer in its blocks; name modules by --lora-targets")
    return inside


def linear_names(model: nn.Module) -> list[str]:
    """The last parts of the names of all linear layers, in order, each once."""
    from transformers.pytorch_utils import Conv1D

    from zograd.quantized.packed_layers import PackedLinear

    return list(
        dict.fromkeys(
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D | PackedLinear)
        )
    )


def named(name: str, targets: Sequence[str]) -> bool:
    """Whether peft takes the module of that name for one of these targets."""
    return any(name == target or name.endswith("." + target) for target in targets)


def take_packed(config: Any) -> None:
    """Let peft put adapters on packed matrices too: they compute as linear layers, with a weight that is not dense.

    They cannot be merged; `save_pretrained` of the wrapped model writes them alone.
    """
    from peft.tuners.lora import Linear

    from zograd.quantized.packed_layers import PackedLinear

    config._register_custom_module({PackedLinear: Linear})


def refuse_tied(model: nn.Module) -> None:
    """Raise ModelError for an adapter on a weight shared by two modules: it acts in one but is merged into both."""
    owners: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(p), []).append(name.removeprefix("base_model.model."))
    for names in owners.values():
        adapted = [name for name in names if name.endswith(".base_layer.weight")]
        if adapted and len(names) > 1:
            name, other = (n.removesuffix(".weight").removesuffix(".base_layer") for n in names[:2])
            target = adapted[0].removesuffix(".base_layer.weight").rpartition(".")[2]
            raise ModelError(
                f"{name!r} and {other!r} share one weight in this model: an adapter on {target} would act in one of "
                f"them and be merged into both; leave {target} out of --lora-targets"
            )
