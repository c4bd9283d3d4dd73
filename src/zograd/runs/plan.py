"""The memory that a run will need, computed from the model's configuration without loading a weight.

Parameters are counted on torch's meta device. Inference is one forward with fused attention and the causal
language-model loss of transformers. With T = batch_size x seq_len tokens, hidden size H, intermediate size I,
vocabulary V and b bytes for each weight:

    weights         sum over parameters of numel x bytes (tied tensors once)
    loss head       T V (b + 4 [+ 4 in 16 bits]):  logits, their float32 copy in 16 bits, log-probabilities in float32
    block           T (6 H + 4 I) b:               residual, norm, q, k, v, output; gate, up, activation, product
    inference       weights + T H b (hidden states) + max(loss head, block)

A step computes its loss tile by tile of the vocabulary, so its loss head is one tile of R rows. T' is the number of
tokens of all points that share a forward (`llm/scoring/scorer.py::SATURATED`). Such a forward holds 2 H + 2 I numbers
more for each token, as measured. A task that scores label words of one token needs less.

    method          weights + T' H b + max(T' R b, block of T') + a tile of a weight matrix (two where points share a
                      forward) + blocks of workspace, or the largest matrix in float32 for rules on whole matrices +
                      slots in float32 + low halves (2 bytes)
    Adam            weights + gradients and two moments in float32 + what a backward pass keeps without checkpointing:
                      T L (8 H + 4 I) b of L blocks, the loss head, the gradient of its logits (4 T V), and the
                      gradient of the largest tensor once more, before it is added to the others
    checkpointed      weights + what enters each trained block, T H b + activations and gradients of one block, of at
                      most `AT_ONCE` tokens + the gradient of a trained embedding or output matrix, or twice that
                      where it is larger: backpropagation with updates fused into it and Adafactor (`backprop`)

For a packed model (a .gguf, `quantized`), the weights are its blocks as in the file, and a forward needs one more tile
to de-quantize. Training its scales adds a float32 master for each block of the chosen layers to the method.

With weights on the disk (`offload`), twice the largest part replaces the weights: one block in use and the next one
being read, or a tensor outside of the blocks, such as the head. The trained weights take their size on the disk.

Every figure is of the model alone. Python, torch and transformers, and what loading and evaluating leave behind, come
on top: `AROUND` on a CPU, about 0.5 GiB on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from zograd import methods
from zograd.core.run import Method, Run
from zograd.core.slots import BFloat16, Bits, PerColumn, PerLeaf, PerRow
from zograd.core.tape import pack_record
from zograd.core.vector import HALF, accumulation_dtype
from zograd.errors import UsageError
from zograd.estimators import FromBlocks
from zograd.hub import resolve_model
from zograd.lens.branches import FEW
from zograd.lens.lens import TILE
from zograd.llm.loading import (
    ADAPTERS,
    PARTS,
    LoraSpec,
    ModelError,
    attach_lora,
    attach_polar,
    attach_virtual,
    auto_class_of,
    blocks,
    decay_groups,
    dtype_named,
    extra,
    first_line,
    is_scales,
    load,
    plain_model,
    select,
    silence,
    takes_no_text,
)
from zograd.llm.method import check_forwards, check_slots
from zograd.llm.oracle import AT_ONCE
from zograd.llm.parts import embeddings_and_output
from zograd.llm.scoring.scorer import SATURATED
from zograd.quantized.gguf_file import linear_layers, packed_layers
from zograd.runs.memory import available_bytes
from zograd.stores import Leaf, Rounding, Store
from zograd.stores.leaf import CHUNK

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FRAME_BYTES = 12
"""Length and two checksums around each record of a tape."""

GIB = 2.0**30


@dataclass(frozen=True)
class Question:
    """The run that is planned."""

    method: str
    batch_size: int
    seq_len: int
    dtype: torch.dtype
    train: str
    rounding: Rounding
    packed: str | None = None
    """The model, if it stays packed."""
    offload: bool = False
    """Whether weights stay on the disk."""
    layers: int | None = None
    """The last blocks that are trained; None: all."""
    tokens: int = 0
    """Virtual tokens in front of each sequence."""
    settings: tuple[tuple[str, Any], ...] = ()
    """Of the method, where they are not its defaults."""


Answer: TypeAlias = dict[str, Any]

AROUND = 560 << 20
"""Memory of a process on a CPU beside its model, as `benchmarks.plans` measures it."""
AROUND_OFFLOADED = 430 << 20
"""The same where the weights stay on the disk: nothing of their size was ever allocated."""
OF_KERNELS = 128 << 20
"""What oneDNN keeps of compiled kernels for bfloat16 (`zograd.runs.memory.few_kernels`): 60 to 250 MiB here."""


def plan(
    model: str,
    *,
    method: str = "zo_sgd",
    batch_size: int = 16,
    seq_len: int = 64,
    device: str = "cpu",
    dtype: str = "float32",
    train: str = "full",
    rounding: Literal["stochastic", "split", "nearest"] = "stochastic",
    quantized: bool = False,
    offload: Literal["disk"] | None = None,
    layers: int | None = None,
    tokens: int = 10,
    method_settings: Mapping[str, Any] | None = None,
) -> Answer:
    """Memory (bytes), evaluations and tape of a run before anything is loaded; formulas in the module's docstring.

    model: a directory with a config.json, or an alias. An alias that is not in the cache is fetched first, since its
        configuration comes with its weights; they are not loaded into memory.
    train: "full", "lora", "polar", "prefix", "prompt", "scales" or a pattern of parameter names, as in training.
    tokens: virtual tokens of "prefix" and "prompt".
    quantized: a .gguf that stays packed: its header is read and its blocks are mapped, not loaded.
    offload: "disk" if the weights stay on the disk.
    method_settings: settings of the method, as in training: {"moments": "bfloat16"}.

    Keys: `params`, `trainable` (elements), `weights_bytes`, `resident_weights_bytes` (less with `offload`),
    `inference_peak_bytes`, `method_peak_bytes`, `adam_peak_bytes`, `backprop_peak_bytes` (with checkpointed blocks,
    updates fused into the backward pass, and no moments), `activation_bytes` (of a step), `slot_bytes`,
    `low_bytes`, `workspace_bytes`, `evaluations_per_step`, `tape_bytes_per_step`, `available_bytes` (None if
    unknown), `fits`, and `advice`: sentences that say what would fit if this does not. Figures do not include the
    memory of Python and torch, but for `process_peak_bytes`: the peak of the whole process (None on a GPU).

    Accuracy: for a 135M model in float32, `process_peak_bytes` is within 10 % of what the operating system measures
    (`benchmarks.plans`), and the part of a measured peak above the weights within 30 %, plus 16 MiB. While a file of
    another dtype is loaded, its mapped pages count too, which the system takes back when it needs them.
    Cost: seconds, most of them for importing transformers.
    Raises ModelError for a model without a readable configuration, one that reads no text, and a selection that matches
    nothing, ValueError for a method that is not on the menu and for more tokens than the model takes.

        plan("smollm2-135m", method="fzoo", batch_size=16, seq_len=64)["method_peak_bytes"]
    """
    if batch_size < 1 or seq_len < 1:
        raise UsageError(f"batch_size and seq_len must be at least 1, got {batch_size} and {seq_len}")
    if rounding not in ("stochastic", "split", "nearest"):
        raise UsageError(f"unknown rounding {rounding!r}; use 'stochastic', 'split' or 'nearest'")
    if offload not in (None, "disk"):
        raise UsageError(f"offload={offload!r} is not planned; use 'disk', or leave it out")
    if offload is not None and quantized:
        raise UsageError("offload does not go with quantized: leave one out")
    settings = tuple(sorted((method_settings or {}).items()))
    try:
        made = method_named(method, settings)
    except (TypeError, ValueError) as e:
        raise UsageError(f"method {method!r}: {e}") from e
    if offload is not None:
        if train in PARTS:
            raise UsageError(f"--train {train} does not go with --offload; leave one out")
        check_forwards(method, made.estimator, offload=True, compiled=False)
        check_slots(made, train not in ADAPTERS)
    config = skeleton_of_packed(model, dtype).config if quantized else configuration(model)
    if (reads := takes_no_text(config)) is not None:
        raise ModelError(
            f"{model} is a model of {reads}, and what is planned is the memory of language models: `zograd train "
            f"--steps 2` measures it"
        )
    virtual = tokens if train in PARTS else 0
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and seq_len + virtual > longest:
        behind = f" with {virtual} virtual tokens" if virtual else ""
        raise UsageError(f"seq_len={seq_len}{behind}: {model} takes {longest} tokens; give at most {longest - virtual}")
    question = Question(
        method, batch_size, seq_len + virtual, dtype_named(dtype), train, rounding, model if quantized else None,
        bool(offload), layers, virtual, settings,
    )  # fmt: skip
    answer = estimate(config, question)
    available = available_bytes(device)
    fits = None if available is None else answer["method_peak_bytes"] <= available
    around = AROUND_OFFLOADED if offload else AROUND
    around += OF_KERNELS if question.dtype == torch.bfloat16 else 0
    whole = answer["method_peak_bytes"] + around if torch.device(device).type == "cpu" else None
    return {
        **answer,
        "dtype": str(question.dtype).removeprefix("torch."),
        "process_peak_bytes": whole,
        "available_bytes": available,
        "fits": fits,
        "advice": advice(config, question, answer, available),
    }


def configuration(model: str) -> PretrainedConfig:
    """The configuration of a model on this machine."""
    try:
        from transformers import AutoConfig
    except ImportError as e:
        raise ModelError(extra("llm")) from e
    path = resolve_model(model)
    silence()
    try:
        return AutoConfig.from_pretrained(path)
    except Exception as e:  # transformers raises OSError, ValueError, KeyError ... for bad files
        raise ModelError(f"cannot read the configuration of a model from {path}: {first_line(e)}") from e


def skeleton(config: PretrainedConfig, question: Question) -> PreTrainedModel:
    """The model on the meta device, which takes no memory. A packed model is mapped from its file."""
    if question.packed is not None:
        dtype = str(question.dtype).removeprefix("torch.")
        return skeleton_of_packed(question.packed, dtype, adapters=question.train if question.train in ADAPTERS else "")

    try:
        with torch.device("meta"):
            model = auto_class_of(config, classes=2).from_config(config, dtype=question.dtype)
            if question.train in PARTS:
                return attach_virtual(model, question.train, question.tokens, 0)
            return with_adapters(model, question.train)
    except ModelError:
        raise
    except Exception as e:
        raise ModelError(f"this configuration is not one of a causal language model: {first_line(e)}") from e


@cache
def skeleton_of_packed(model: str, dtype: str, *, adapters: str = "") -> Any:
    """A packed model, with the adapters "lora" or "polar" on request; it is mapped once and kept."""
    packed = load(model, dtype=dtype, quantized=True)[0]
    return with_adapters(packed, adapters)


def with_adapters(model: Any, train: str) -> Any:
    """The model with the adapters of its default rank that `train` names, if it names any."""
    attach = {"lora": attach_lora, "polar": attach_polar}.get(train)
    return model if attach is None else attach(model, LoraSpec(), 0)


def scales_of(model: nn.Module, train: str, layers: int | None) -> dict[str, Tensor]:
    """The masters that `select` would make of a packed model, on the meta device."""
    pattern = train.partition(":")[2]
    top = list(blocks(model))[-layers:] if layers is not None else [model]
    inside = {id(module) for part in top for module in part.modules()}
    chosen = {
        f"{name}.scale": torch.empty(layer.rows, layer.groups, device="meta")
        for name, layer in linear_layers(model, pattern)
        if id(layer) in inside
    }
    if not chosen:
        raise ModelError(f"--train {train} selects no packed layer; add --quantized, or choose another pattern")
    return chosen


def estimate(config: PretrainedConfig, question: Question) -> Answer:
    """The figures of one question."""
    model = skeleton(config, question)
    named = dict(model.named_parameters())
    part, layers = question.train, question.layers
    chosen = scales_of(model, part, layers) if is_scales(part) else select(model, part, layers=layers)
    method = method_named(question.method, question.settings)
    estimator, base = method.estimator, plain_model(model)
    at_ends = {id(p) for module in embeddings_and_output(base) for p in module.parameters()}
    if isinstance(estimator, FromBlocks) and (question.offload or not estimator.reaches_front):
        chosen = {name: t for name, t in chosen.items() if id(t) not in at_ends}
    packed = [layer for _, layer in packed_layers(model)]
    weights = sum(map(bytes_of, [*named.values(), *(layer.blocks for layer in packed)]))
    trainable = sum(t.numel() for t in chosen.values())

    text = config.get_text_config()
    depth = len(blocks(base))
    embedding = base.get_input_embeddings()
    vocabulary, hidden = embedding.num_embeddings, embedding.embedding_dim
    intermediate = getattr(text, "intermediate_size", None) or getattr(text, "ffn_dim", None) or 4 * hidden
    tokens, b = question.batch_size * question.seq_len, question.dtype.itemsize

    head = tokens * vocabulary * (b + 4 + (4 if b == 2 else 0))
    block = tokens * (6 * hidden + 4 * intermediate) * b
    activations = tokens * hidden * b + max(head, block)
    resident = streamed_bytes(base) if question.offload else weights
    dequantized = min(TILE, max(p.rows * p.columns for p in packed)) * b if packed else 0
    inference = resident + activations + dequantized

    half = {k: t for k, t in chosen.items() if t.dtype in HALF}
    low = sum(2 * t.numel() for t in half.values() if question.rounding == "split" or t.ndim <= 1)
    slots = sum(slot_bytes(value, t) for value in method.slots.values() for t in chosen.values())
    n_slots = sum(not isinstance(value, PerRow | PerColumn | PerLeaf | Bits) for value in method.slots.values())
    together = min(max(1, SATURATED // tokens), method.evaluations)
    seen = tokens * together
    tile_rows = min(vocabulary, max(1, TILE // hidden))
    shared = together > 1
    working = seen * hidden * b + seen * b * max(tile_rows, (6 + 2 * shared) * hidden + (4 + 2 * shared) * intermediate)
    if shared and tokens <= FEW:  # inputs and their transposes, a product transposed
        working += (2 * seen * intermediate + tokens * tile_rows) * b
    count = depth if layers is None else min(layers, depth)
    of_ends = 4 * sum(t.numel() for t in chosen.values() if id(t) in at_ends)
    one_block = min(tokens, AT_ONCE) * (8 * hidden + 4 * intermediate) * b + (4 * trainable - of_ends) // count
    states = tokens * hidden * b
    by_backprop = max(one_block + states * count + of_ends, 2 * of_ends)
    if isinstance(estimator, FromBlocks):  # the activations and the gradients of a block, states between blocks
        between = one_block + states * estimator.states(count)
        working = max(between + of_ends, 2 * of_ends) if estimator.kind == "backprop" else between
    largest = max(t.numel() for t in chosen.values())
    workspace = working_memory(chosen, n_slots, tiles=min(together, 2)) + 4 * largest * method.rule.whole_leaf
    masters = sum(map(bytes_of, chosen.values())) if is_scales(question.train) else 0

    kept = tokens * count * (8 * hidden + 4 * intermediate) * b + head + 4 * tokens * vocabulary + 4 * largest
    return {
        "params": sum(t.numel() for t in named.values()) + sum(p.rows * p.columns for p in packed),
        "trainable": trainable,
        "weights_bytes": weights,
        "resident_weights_bytes": resident,
        "inference_peak_bytes": inference,
        "method_peak_bytes": resident + working + dequantized + masters + workspace + slots + low,
        "adam_peak_bytes": weights + 12 * trainable + max(kept, activations),
        "backprop_peak_bytes": resident + dequantized + masters + by_backprop,
        "activation_bytes": working,
        "slot_bytes": slots,
        "low_bytes": low,
        "workspace_bytes": workspace,
        "evaluations_per_step": method.evaluations,
        "tape_bytes_per_step": tape_bytes(method, decay_groups(chosen)),
    }


def streamed_bytes(model: nn.Module) -> int:
    """Twice the largest part of a model with weights on the disk: a block, or a tensor outside of the blocks."""
    parts = [list(block.parameters()) for block in blocks(model)]
    inside = {id(p) for part in parts for p in part}
    parts += [[p] for p in model.parameters() if id(p) not in inside]
    return 2 * max(sum(map(bytes_of, part)) for part in parts)


def working_memory(chosen: dict[str, Tensor], n_slots: int, tiles: int = 1) -> int:
    """Bytes of the workspace of a step: tiles of a matrix, and the chunks of a move for a rule with slots."""
    tile = 0
    for t in chosen.values():
        columns = t.shape[-1] if t.ndim > 1 else 1
        rows = min(t.numel() // columns, max(1, TILE // columns)) if t.numel() else 0
        tile = max(tile, rows * columns * t.element_size())
    largest = max((t.numel() for t in chosen.values()), default=0)
    chunks = (1 + 2 * n_slots) * min(CHUNK, largest) * 4 if n_slots else 0
    return tiles * tile + chunks


class _Ones:
    """A gradient of ones and no inputs, for methods that ask a source for them."""

    def order(self, leaves: Sequence[Leaf]) -> Sequence[Leaf]:
        return leaves

    def gradient(self, leaf: Leaf) -> Tensor:
        return torch.ones(leaf.numel)

    def watching(self) -> AbstractContextManager[None]:
        return nullcontext()


def tape_bytes(method: Method[Any], groups: dict[str, int]) -> int:
    """Bytes of one step on the tape: the longest record of two steps of this method on a store of two leaves."""
    decays = (1.0, 0.0) if any(groups.values()) else (1.0,)
    store = Store({"w": torch.ones(8), "b": torch.ones(1)}, space=method.space, decays=decays)
    store.source = store.inputs = _Ones()
    run = Run(store, method)
    longest = 0
    for _ in range(2):
        record = None
        while record is None:
            record = run.tell([1.0 + 0.1 * j for j in range(len(run.ask()))])
        longest = max(longest, len(pack_record(record)) + FRAME_BYTES)
    return longest


def method_named(name: str, settings: Sequence[tuple[str, Any]] = ()) -> Method[Any]:
    """The method of the menu with these settings. If it needs a set, any will do: sets take no memory."""
    return methods.make(name, **{**(methods.MENU[name].example if name in methods.MENU else {}), **dict(settings)})


def slot_bytes(value: float, t: Tensor) -> int:
    """Bytes of a slot with this initial value for a trained tensor."""
    if isinstance(value, Bits):
        return t.numel()
    if isinstance(value, BFloat16):
        return 2 * t.numel()
    numbers = t.numel()
    if isinstance(value, PerRow):
        numbers = (t.shape[0] if t.ndim else 1) * value.width
    elif isinstance(value, PerColumn):
        numbers = value.width * (numbers // t.shape[0] if t.ndim else 1)
    elif isinstance(value, PerLeaf):
        numbers = 1
    return numbers * accumulation_dtype(t.dtype).itemsize


def bytes_of(t: Tensor) -> int:
    """Bytes of the elements of a tensor."""
    return t.numel() * t.element_size()


# ---- advice ----------------------------------------------------------------------------------------------------------


def advice(config: PretrainedConfig, question: Question, answer: Answer, available: int | None) -> list[str]:
    """What the figures mean for this machine. If the run does not fit: the changes that would make it fit."""
    needed = answer["method_peak_bytes"]
    if available is None:
        return [f"This run needs {gib(needed)}; the system does not say how much memory is available."]
    if needed <= available:
        said = [f"It fits: {question.method} needs {gib(needed)} of {gib(available)} available."]
        if answer["adam_peak_bytes"] > available:
            said.append(f"Adam with backpropagation would not: it needs {gib(answer['adam_peak_bytes'])}.")
            fused = answer["backprop_peak_bytes"]
            verdict = "would" if fused <= available else "would not either"
            said.append(f"With checkpointed blocks and fused updates (--method backprop) it {verdict}: {gib(fused)}.")
        return said
    said = [f"It does not fit: {question.method} needs {gib(needed)}, {gib(available)} are available."]
    names: list[str] = []
    together = question
    for what, change in alternatives(question, answer, available):
        size = estimate(config, replace(question, **change))["method_peak_bytes"]
        together, names = replace(together, **change), [*names, what]
        if size <= available:
            said.append(f"It would fit with {what}: {gib(size)}.")
    if len(said) > 1:
        return said
    if not names:
        return [*said, "There is nothing left to save here; take a smaller model or a larger machine."]
    size = estimate(config, together)["method_peak_bytes"]
    if size <= available:
        return [*said, f"It would fit with {' and '.join(names)}: {gib(size)}."]
    return [*said, f"Even with {' and '.join(names)} it needs {gib(size)}; take a smaller model or a larger machine."]


def alternatives(question: Question, answer: Answer, available: int) -> list[tuple[str, dict[str, Any]]]:
    """Changes that save memory; those that alter training least come first."""
    found: list[tuple[str, dict[str, Any]]] = []
    if question.method == "backprop" and not dict(question.settings).get("recompute"):
        found.append(("set recompute=true", {"settings": (*question.settings, ("recompute", True))}))
    if question.batch_size > 1:  # activations are proportional to the batch
        fixed = answer["method_peak_bytes"] - answer["activation_bytes"]
        size = max(1, int((available - fixed) / answer["activation_bytes"] * question.batch_size))
        found.append((f"batch size {size}", {"batch_size": size}))
    if answer["slot_bytes"]:
        found.append(("method zo_sgd, which has no slots", {"method": "zo_sgd", "settings": ()}))
    if question.dtype.itemsize > 2:
        found.append(("dtype bfloat16", {"dtype": torch.bfloat16}))
    elif answer["low_bytes"] and question.rounding == "split":
        found.append(("rounding stochastic instead of split", {"rounding": "stochastic"}))
    if question.train == "full" and answer["slot_bytes"] + answer["low_bytes"] > 0:
        found.append(("train lora", {"train": "lora"}))
    watches = method_named(question.method, question.settings).estimator.watches
    dense = question.packed is None and not is_scales(question.train) and question.train not in PARTS
    if dense and not watches and not question.offload and not answer["slot_bytes"] and question.rounding != "split":
        found.append(("offload disk", {"offload": True}))
    return found


def gib(n: int) -> str:
    """Bytes as text in GiB."""
    return f"{n / GIB:.2f} GiB"
