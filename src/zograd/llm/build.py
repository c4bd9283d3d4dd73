"""Build a run from its settings: model, method, trained tensors, store, task and batches."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zograd import methods
from zograd.blockwise import Ends
from zograd.core.run import Method, Run
from zograd.core.slots import PerColumn, PerLeaf, PerRow
from zograd.estimators import Estimator, FromBlocks, NodePerturbation
from zograd.hub import Example, Task, TaskError, load_task, resolve_model, select
from zograd.hub.registry import REGISTRY
from zograd.laws import Memory, NullSpace, OnLayerInputs, RankOne
from zograd.learning_rate import AutoRate
from zograd.llm import loading, lora_init
from zograd.llm.compiled import WORTH, CompileError, check, trial
from zograd.llm.inputs import InputsOfLeaves
from zograd.llm.loading import offloaded as offloading
from zograd.llm.loading.errors import ModelError, first_line
from zograd.llm.loading.polar import SPACE
from zograd.llm.oracle import points_of
from zograd.llm.parts import Parts, parts_of
from zograd.llm.prompts import Form
from zograd.llm.recipe import chosen, for_depth, instead
from zograd.llm.schedule import settled, shaped
from zograd.llm.scoring.batches import Batches
from zograd.llm.scoring.kinds import OF_MEDIA, check_reads, scorer_of
from zograd.llm.scoring.metrics import Metric, MetricFunction, metric_of
from zograd.llm.scoring.objectives import LOSS, Contest, Objective, objective_of
from zograd.llm.scoring.scorer import EVALUATION, Scorer
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.stages import Stages
from zograd.methods import MENU
from zograd.methods.defaults import FULL, LORA, POLAR, SCALES, TOKENS, Onto, Shape, language_model
from zograd.offload.mapped import Offloaded, Pages
from zograd.offload.streamed import Streamed
from zograd.rules import SGD, Balanced, BalancedNorms
from zograd.runs.identity import identity
from zograd.runs.memory import keep_freed
from zograd.spaces import Euclidean, PositiveOrthant
from zograd.stores import Store


@dataclass(frozen=True)
class Prepared:
    """A base model with its trained tensors chosen, ready to train or to replay a tape onto."""

    settings: TrainSettings
    model: nn.Module
    tokenizer: Any
    trained: Mapping[str, Tensor]
    store: Store
    run: Run[Any]
    pages: Offloaded | None = None
    """Where offloaded weights are; None without offload."""
    why: str = ""
    """What is trained, by which method and why, where the method was chosen."""
    replay_seconds: float = 0.0
    """Time that the replay of a tape took (`restore`)."""


def build_method(s: TrainSettings, model: nn.Module | None = None) -> Method[Any]:
    """The method that the settings ask for, with the defaults of `zograd.methods.defaults` for lr and mu.

    model: the one to train, whose width and depth set the default learning rate of methods that look at blocks; None
        where the rate does not matter.

    Raises SettingsError for an unknown method or setting, and for a method that needs a setting without a default.
    """
    settings = dict(s.method_settings)
    entry = methods.describe(s.method)
    if entry["required"]:
        raise SettingsError(
            f"method {s.method!r} needs {', '.join(entry['required'])}, which language models have no default for; "
            f"use it from Python, or choose another of {', '.join(methods.names(blocks=True))}"
        )
    lr = settings.pop("lr", None) if s.lr is None else s.lr
    mu = settings.pop("mu", None) if s.mu is None else s.mu
    onto = onto_of(s)
    looks_at_blocks = MENU[s.method].needs == "blocks"
    size = shape_of(model, s.layers) if looks_at_blocks and model is not None else None
    default = language_model(s.method, onto, size)
    lr = default.get("lr") if lr is None else lr
    mu = default.get("mu") if mu is None else mu
    if mu is not None:
        settings["mu"] = float(mu)
    if s.weight_decay:
        settings["weight_decay"] = s.weight_decay
    if lr is not None:
        shape = "constant" if s.seconds is not None or not s.steps else s.lr_schedule  # or `llm/clock.py` shapes it
        schedule = shaped(shape, 1.0 if lr == "auto" else float(lr), s.steps, s.warmup, s.lr_end)
        settings["lr"] = AutoRate(shape=schedule) if lr == "auto" else schedule
    try:
        method = methods.make(s.method, **settings)
    except (TypeError, ValueError) as e:
        raise SettingsError(f"method {s.method!r}: {e}") from e
    if s.balance:
        return balanced(s, method)
    if s.protect is not None:
        return protected(s, method)
    if s.train == "polar":
        return on_manifolds(s, method)
    if onto is not SCALES:
        return method
    try:
        return replace(method, space=PositiveOrthant())
    except (TypeError, ValueError) as e:
        raise SettingsError(f"method {s.method!r} does not work on positive scales: {e}") from e


def balanced(s: TrainSettings, method: Method[Any]) -> Method[Any]:
    """The method with its rule in `Balanced`, or in `BalancedNorms` where it keeps moments.

    Raises SettingsError where there are no pairs of factors to balance, or where the moments are of another kind.
    """
    if s.train != "lora":
        raise SettingsError(f"--balance is for --train lora, and here is --train {s.train}; leave it out")
    if s.lora_init == "activations":
        raise SettingsError("--balance scales both factors, and --lora-init activations fixes A: leave one of them out")
    wrap = BalancedNorms if method.rule.slots else Balanced
    try:
        return replace(method, rule=wrap(method.rule))
    except TypeError as e:
        raise SettingsError(f"--balance does not go with --method {s.method}: {e}") from e


def on_manifolds(s: TrainSettings, method: Method[Any]) -> Method[Any]:
    """The method where the outer factors of PoLAR adapters keep orthonormal columns.

    Raises SettingsError for a method that does not move so, and for weight decay, which would pull them towards 0.
    """
    if s.weight_decay:
        raise SettingsError(
            "--weight-decay pulls towards 0, where no matrix has orthonormal columns; leave it out, or use --train lora"
        )
    if not isinstance(method.space, Euclidean):
        raise SettingsError(
            f"--train polar does not go with --method {s.method}, which moves in a space of its own "
            f"({type(method.space).__name__}); use another method, or --train lora"
        )
    try:
        return replace(method, space=SPACE)
    except (TypeError, ValueError) as e:
        raise SettingsError(f"--train polar does not go with --method {s.method}: {e}") from e


def protected(s: TrainSettings, method: Method[Any]) -> Method[Any]:
    """The method with directions off what the file of `--protect` remembers.

    Raises SettingsError for a file that does not parse, and methods whose moves would leave the null space.
    """
    if loading.is_scales(s.train) or s.train in (*loading.ADAPTERS, *loading.PARTS):
        raise SettingsError(f"--protect is for the weights that are remembered, and --train {s.train} adds others")
    try:
        return replace(method, law=NullSpace(memory_at("--protect", str(s.protect))))
    except TypeError as e:
        raise SettingsError(f"--protect does not go with --method {s.method}: {e}") from e


def memory_at(option: str, path: str | Path) -> Memory:
    """What a file of `zograd protect` remembers. Raises SettingsError with the option where it cannot be read."""
    from safetensors import SafetensorError

    try:
        return Memory.load(path)
    except (OSError, SafetensorError) as e:
        raise SettingsError(f"{option} {path} cannot be read ({str(e)[:80]}); `zograd protect` makes one") from e


def prepare(s: TrainSettings, folder: Path, *, trying: bool = False, why: str = "", texts: bool = False) -> Prepared:
    """Load the base model, attach adapters, choose the trained tensors, and make the store and the run.

    folder: the folder of the run. Weights that are offloaded to the disk are trained in a working copy there.
    trying: test on a few tokens whether the blocks of the model fit the method. why: the reason of a method that was
        chosen (`llm.recipe`); where that one does not fit, another one is, and its reason is in the result.
    texts: whether all tokens of texts are learned, for the default learning rate of methods on blocks.

    Raises SettingsError and ModelError.
    """
    estimator = build_method(s).estimator  # a mistake is said before a model is loaded
    check_virtual(s, estimator)
    if s.lora_init != "default" and s.train != "lora":
        raise SettingsError(
            f"--lora-init {s.lora_init} is for --train lora, and here is --train {s.train}; leave it out"
        )
    if s.objective != LOSS and isinstance(estimator, FromBlocks) and estimator.differentiates:
        raise SettingsError(
            f"--method {s.method} needs the derivative of a loss, and the objective {s.objective} has none; use a "
            f"method that needs values alone, such as node_perturbation, zo_sgd or rank"
        )
    refused: tuple[str, ...] = ("offload", "compile") if estimator.watches else ()
    if isinstance(estimator, FromBlocks):
        refused = ("compile",)
    for name in refused:
        if getattr(s, name):
            raise SettingsError(f"--method {s.method} does not go with --{name} in this release; leave one out")
    mapped: Pages | None = None
    if s.offload == "disk":
        model, tokenizer, mapped = offloading.load(s.model, dtype=s.dtype, scratch=folder)
    else:
        model, tokenizer = loading.load(
            s.model, dtype=s.dtype, device="cpu" if s.offload else s.device, quantized=s.quantized, quantize=s.quantize,
            classes=s.classes, seed=s.seed,
        )  # fmt: skip
    module: nn.Module = model
    rated = texts and s.lr is None and "lr" not in s.method_settings and isinstance(estimator, FromBlocks)
    if rated:
        s = s.model_copy(update={"lr": rate_of_blocks(s, shape_of(module, s.layers)._replace(texts=True))})
    method = build_method(s, module)
    layers = s.layers
    spec = loading.LoraSpec(s.lora_r, s.lora_alpha, tuple(s.lora_targets or ()), s.layers)
    if s.train == "lora":
        module, layers = loading.attach_lora(model, spec, s.seed), None
    elif s.train == "polar":
        module, layers = loading.attach_polar(model, spec, s.seed), None
    elif s.train in loading.PARTS:
        module = loading.attach_virtual(model, s.train, s.tokens, s.seed)
    if trying and isinstance(estimator, FromBlocks):
        try:
            reason = misfit(s, module, estimator, layers)
            exact = bool(reason and why) and misfit(s, module, FromBlocks("backprop"), layers) is None
        except OutsideError as e:
            if not why:  # the user named the method
                raise
            reason, exact = f"{e.name} lies outside of the blocks", False
        if reason and why:
            s, why = instead(s.model_copy(update={"lr": None}) if rated else s, reason, exact=exact)
            if s.method == "backprop" and s.lr is None:
                of_images = loading.kind_of(module) == "images"  # a stride between its blocks, and norms inside of them
                shape = shape_of(module, s.layers)._replace(adds=of_images, texts=texts)
                s = s.model_copy(update={"lr": rate_of_blocks(s, shape)})
            method, layers = build_method(s, module), s.layers if s.train not in loading.ADAPTERS else None
        elif reason:
            raise SettingsError(f"--method {s.method} does not fit: {reason}. Use --method backprop, or zo_sgd")
    return _prepared(s, folder, module, tokenizer, method, layers, mapped, why)


def rate_of_blocks(s: TrainSettings, shape: Shape) -> float:
    """The default rate of a method on blocks for such a model, with two digits, as it is shown and kept."""
    return float(f"{language_model(s.method, onto_of(s), shape)['lr']:.2g}")


def onto_of(s: TrainSettings) -> Onto:
    """How the menu's numbers change for what is trained."""
    if loading.is_scales(s.train):
        return FULL if s.method in ("hozo", "qzo") else SCALES
    return {"lora": LORA, "polar": POLAR, "prompt": TOKENS, "prefix": TOKENS}.get(s.train, FULL)


def check_virtual(s: TrainSettings, estimator: Estimator[Any]) -> None:
    """Raise SettingsError for settings that do not go with virtual tokens."""
    if s.train not in loading.PARTS:
        return
    if isinstance(estimator, FromBlocks) and not (
        estimator.perturbs_lookup or (estimator.reaches_front and s.train == "prompt")
    ):
        centred = isinstance(estimator, NodePerturbation)
        why = (
            "which does not reach the keys and values of a prefix"
            if estimator.reaches_front
            else "as residual feedback knows no derivative at virtual tokens: it stands behind the last block, at the "
            "tokens that are scored"
        )
        other = "--method backprop, " if s.train == "prompt" else ""
        raise SettingsError(
            f"--train {s.train} does not go with --method {s.method}{' with center=residual' if centred else ''}, "
            f"{why}. Use --method node_perturbation{' alone' if centred else ''}, {other}or --train lora"
        )
    others = {
        "--layers": s.layers is not None,
        "--offload": s.offload is not None,
        "--compile": bool(s.compile),
    }
    if found := next((name for name, given in others.items() if given), None):
        raise SettingsError(
            f"--train {s.train} puts {s.tokens} virtual tokens in front of a text, and does not go with {found}; leave "
            f"that out, or use --train lora"
        )


def misfit(s: TrainSettings, module: nn.Module, estimator: FromBlocks, layers: int | None) -> str | None:
    """Why a model cannot give the gradients of its blocks as this estimator takes them; None if it can.

    Cost: one forward of a few tokens, and one more of each trained block.
    """
    if s.train in loading.PARTS and estimator.perturbs_lookup:
        return None  # models that take them are causal, and their embedding is known
    if loading.is_scales(s.train):
        return None  # they are made with the store, and the models that have them are causal and add
    try:
        trained, _ = inside(module, loading.select(module, s.train, layers=layers), s, estimator)
        found = parts_of(module, trained, residual=estimator.adds, front=estimator.reaches_front)
    except ModelError as e:
        return first_line(e)
    return found if isinstance(found, str) else None


def _prepared(
    s: TrainSettings, folder: Path, module: nn.Module, tokenizer: Any, method: Method[Any], layers: int | None,
    mapped: Pages | None, why: str,
) -> Prepared:  # fmt: skip
    """See `prepare`: what is trained, with its store and its run."""
    estimator, model = method.estimator, loading.plain_model(module)
    pages: Offloaded | None = None
    trained = loading.select(module, s.train, layers=layers)
    if s.protect is not None:
        known = memory_at("--protect", str(s.protect)).by_name
        trained = {name: t for name, t in trained.items() if name in known}
        if not trained:
            raise SettingsError(
                f"none of the weights that {s.protect} remembers is trained (it has {', '.join(list(known)[:2])}); "
                f"leave --train and --layers out, or remember others"
            )
    if s.lora_init == "activations":
        trained = lora_init.without_A(trained)
    module.requires_grad_(False)
    if isinstance(estimator, FromBlocks):
        if loading.is_scales(s.train) and not hasattr(model, "packed_file"):
            raise SettingsError(
                f"--method {s.method} trains the scales of a GGUF file (--quantized); the layers of other libraries "
                f"have no derivative in theirs: use --train lora, or --method zo_sgd"
            )
        blocks = loading.blocks(model)
        trained, ends = inside(module, trained, s, estimator)
        if estimator.kind == "nodes" and (kind := loading.kind_of(model)) in ("pairs", "images", "speech"):
            there = "there are none in the images of" if kind == "images" else "an encoder reads those of"
            raise SettingsError(
                f"--method {s.method} needs the tokens on which each part of a loss depends, and {there} "
                f"{type(model).__name__}; use residual or backprop"
            )
    streamed: Streamed | None = None
    if mapped is not None:
        pages = mapped
        check_slots(method, trained, mapped)
        offloading.make_trainable(trained, mapped, folder)
        offloading.stream(module, mapped)
    elif s.offload == "cpu":
        pages = streamed = offloading.to_device(
            module, s.device, keep=trained.values() if s.train in loading.ADAPTERS else ()
        )
        check_slots(method, trained, streamed)
    store = Store(
        trained, space=method.space, rounding=s.rounding, groups=loading.decay_groups(trained), decays=(1.0, 0.0),
        pages=pages,
    )  # fmt: skip
    if streamed is not None:
        streamed.serve(store)
    if estimator.watches:
        store.inputs = layers_of(module, store, method)
    if isinstance(estimator, FromBlocks):
        store.source = estimator.source(list(blocks), store.leaves, ends)
    if why and s.layers is not None:
        why = for_depth(why, s, len(loading.blocks(model)))
    return Prepared(s, module, tokenizer, trained, store, Run(store, method, s.seed), pages=pages, why=why)


def shape_of(model: Any, layers: int | None) -> Shape:
    """The width of a model, and the number of its blocks that are trained."""
    depth = len(loading.blocks(model))
    config = loading.plain_model(model).config.get_text_config()
    width = getattr(config, "hidden_size", None)
    if width is None:  # convolutions: the channels that enter the head
        width = next(p.shape[-1] for p in loading.head_of(model).values() if p.ndim == 2)
    return Shape(width, depth if layers is None else min(layers, depth))


def layers_of(module: nn.Module, store: Store, method: Method[Any]) -> InputsOfLeaves:
    """What records the inputs of the trained layers. Raises SettingsError where no trained tensor is a layer's weight.

    `set_up` tells it which positions hold tokens.
    """
    assert isinstance(method.law, OnLayerInputs)
    try:
        return InputsOfLeaves(module, store.leaves, method.law.rank)
    except ValueError as e:
        raise SettingsError(f"--method {method.name} looks at what enters linear layers, and {e}; use lozo") from e


class OutsideError(SettingsError):
    """A method on blocks is to train the tensor `name`, which is in no block."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


def inside(
    module: nn.Module, trained: Mapping[str, Tensor], s: TrainSettings, estimator: FromBlocks
) -> tuple[dict[str, Tensor], Ends]:
    """The trained tensors whose gradients the method has, and the names of those outside of the blocks.

    They are parameters of the blocks, of the head of a masked model or a classifier, the last norm, and with `backprop`
    embeddings and the output matrix, which stay where weights are offloaded. The others of "full" are left out; a
    pattern has to name tensors of these kinds alone.

    Raises OutsideError where it names another one. Costs a forward of a few tokens, where tensors are in no block.
    """
    if s.train in loading.PARTS and estimator.perturbs_lookup:
        virtual = loading.virtual_of(module)
        assert virtual is not None
        return dict(trained), Ends(front=list(trained), lookup=virtual.lookup)
    head = loading.head_of(module)
    owned = {id(p) for p in (*loading.blocks(module).parameters(), *head.values())}
    found = {name: tensor for name, tensor in trained.items() if id(tensor) in owned}
    tail, front = list(head), list[str]()
    if len(found) < len(trained) and estimator.kind != "nodes":
        front_too = estimator.reaches_front and s.offload is None
        parts = parts_of(module, trained, residual=False, front=front_too)
        if isinstance(parts, Parts):
            tail += [name for name in parts.tail if name not in head]
            front += parts.front
            found = {name: t for name, t in trained.items() if name in found or name in tail or name in front}
    adapters = s.train in loading.ADAPTERS and s.lora_targets is None  # of an encoder, too
    left_out = s.train == "full" or adapters
    if len(found) < len(trained) and not left_out:
        other = next(name for name in trained if name not in found)
        raise OutsideError(
            f"--method {s.method} trains tensors inside of the blocks, and --train {s.train} names {other}; use "
            f"--train full, a pattern of tensors of the blocks, or --method {'zo_sgd' if s.offload else 'backprop'}",
            other,
        )
    return found, Ends(tail, front)


def check_slots(method: Method[Any], trained: Mapping[str, Tensor], pages: Offloaded) -> None:
    """Raise SettingsError for a method with d-sized slots on offloaded weights: slots are not offloaded."""
    large = [name for name, slot in method.slots.items() if not isinstance(slot, PerRow | PerColumn | PerLeaf)]
    if large and any(t in pages for t in trained.values()):
        factored = isinstance(method.estimator, FromBlocks)
        instead = "--set moments=factored" if factored else "a method without slots, such as zo_sgd or fzoo"
        raise SettingsError(
            f"method {method.name!r} keeps {', '.join(large)} for every trained weight, and --offload moves weights "
            f"only; choose {instead}, or --train lora"
        )


def check_dealing(s: TrainSettings, world: int, shards: int) -> None:
    """Raise SettingsError for a method whose steps cannot be dealt so to `world` processes."""
    estimator = build_method(s).estimator
    if world > 1 and estimator.watches:  # a step looks into the forward of its whole batch
        raise SettingsError(f"--method {s.method} runs in one process in this release, and here are {world}")
    if isinstance(estimator, FromBlocks) and (s.parallel != "data" or shards != world):
        raise SettingsError(
            f"--method {s.method} deals one part of the batch to each of {world} processes, and here are --parallel "
            f"{s.parallel} and {shards} parts; leave --parallel and --shards out"
        )


def resolve(s: TrainSettings, world: int = 1) -> TrainSettings:
    """The settings with all values filled in that are open: method, dtype "auto", threads, shards.

    world: number of processes. With parallel = "data" a batch is cut into one part for each process; with "directions"
    it stays whole; with "both" it is cut into the fewest parts that keep all processes busy.
    """
    s, _ = chosen(s, world)
    s = s.model_copy(update={"lr_schedule": settled(s.lr_schedule)})
    shards = s.shards
    if shards is None:
        points = build_method(s).evaluations
        shards = {"data": world, "directions": 1, "both": world // math.gcd(world, points)}[s.parallel]
    if (world, shards, s.parallel) != (1, 1, "data"):
        check_dealing(s, world, shards)
    if shards > s.batch_size:
        raise SettingsError(f"a batch of {s.batch_size} cannot be cut into {shards} parts; raise --batch-size")
    dtype = str(loading.dtype_named(s.dtype)).removeprefix("torch.")
    threads = torch.get_num_threads() if s.threads is None else s.threads
    return s.model_copy(update={"threads": threads, "dtype": dtype, "shards": shards})


@dataclass(frozen=True)
class Work:
    """A prepared model with its task: everything that a run needs, except its folder."""

    prepared: Prepared
    base: list[dict[str, Any]]
    """Identity of the base model."""
    scorer: Scorer
    batches: Batches
    held_out: list[Any]
    data: dict[str, Any]
    """Description of the examples for run.json."""


def examples_of(s: TrainSettings, split_by: Sequence[str] | None = None) -> tuple[Task, list[Example], list[Example]]:
    """The task of a run, its training examples and its held-out examples: a function of settings and data alone.

    split_by: the columns whose hash splits the data; None: those of its prompt. Raises TaskError for data that does
    not fit, or a split without examples.
    """
    options = {name: getattr(s, name) for name in OF_DATA}
    task = load_task(s.task, **options, hold_out=s.eval_split == "validation", seed=s.seed, split_by=split_by)
    for split, why in (("train", "trained on"), (s.eval_split, "held out")):
        if not task.splits[split]:
            file = {"validation": ", or --eval-file", "test": ", or --test-file"}.get(split, "")
            raise TaskError(no_examples(task, split, f"nothing can be {why}; {_together(task)}give more data{file}"))
    examples = select(task, "train", s.train_examples, seed=s.seed, draw=s.draw)
    return task, examples, select(task, s.eval_split, s.eval_examples, seed=s.seed, draw=s.draw)


def check_found(s: TrainSettings) -> None:
    """Raise TaskError where a file that a run names by a relative path is not found from the current folder."""
    for name in (s.task, s.eval_file, s.test_file):
        path = Path(name or "")
        if path.suffix and ":" not in path.name and not path.is_absolute() and not path.expanduser().exists():
            raise TaskError(
                f"the run was trained on {name}, which is not to be found from {Path.cwd()}: go to the folder in which "
                f"it was trained, or bring the file back"
            )


OF_DATA = (
    "prompt_template", "label_words", "text_column", "label_column", "completion_column", "records", "eval_file",
    "test_file",
)  # fmt: skip
"""Settings that say how data is read; arguments of `load_task`."""


def _together(task: Task) -> str:
    """A clause for data of which most records have the same text, so that a hash puts them into one split; else ""."""
    prompts = [e.prompt for part in task.splits.values() for e in part]
    different = len(set(prompts))
    if not task.drawn or different > len(prompts) / 2:
        return ""
    return (
        f"the {len(prompts):,} records have {different:,} different {' and '.join(task.split_by)}, and records with "
        f"the same one stay in one split: write the split of each into a column named split, or "
    )


def no_examples(task: Task, split: str, remedy: str) -> str:
    """The sentence for a split that has no examples: which ones have some."""
    sizes = ", ".join(f"{len(part):,} {name}" for name, part in task.splits.items() if part) or "none at all"
    return f"{task.source} has no {split} example, but {sizes}: {remedy}"


def text_of(e: Example) -> str:
    """What an example is known by: its text with the answer or choices, or its image or recording; not its label."""
    return e.media.sha256 if e.media is not None else e.prompt + e.completion + "".join(e.choices)


def digest(task: Task, examples: Sequence[Example], held_out: Sequence[Example]) -> str:
    """SHA-256 of the data of a run: kind of task, label words, and the examples of both parts in their order."""
    h = hashlib.sha256(json.dumps([task.kind, *task.label_words]).encode())
    for part in (examples, held_out):
        h.update(b"\n")
        for e in part:
            more = [x for x in (e.chat, e.choices, e.also) if x]
            prompt = e.media.sha256 if e.media is not None else e.prompt
            h.update(json.dumps([prompt, e.label, e.completion, *more]).encode())
    return h.hexdigest()


def announce(task: Task, s: TrainSettings, examples: Sequence[Example], held_out: Sequence[Example]) -> None:
    """Print how many examples of a user's file are used if not all are; warn of a class without an example."""
    if not task.own:
        return
    words = ", ".join(map(repr, task.label_words))
    scored = f", scored by {words}" if s.label_words is None and task.classes and task.reads == "text" else ""
    print(f"zograd: {task.said}{scored}", file=sys.stderr, flush=True)
    known = set(map(text_of, examples))
    if shared := sum(text_of(e) in known for e in held_out):
        warnings.warn(
            f"{shared} of the {len(held_out):,} {s.eval_split} examples are train examples too, so their metric says "
            f"little; remove them from one of the files",
            stacklevel=3,
        )
    for option, name, part in (("train", "train", examples), ("eval", s.eval_split, held_out)):
        counts = [(c, sum(e.label == k for e in part)) for k, c in enumerate(task.classes)]
        if len(part) < len(task.splits[name]):
            how = "the first ones" if s.draw == "first" else f"drawn by seed {s.seed}"
            of_each = "".join(f", {n:,} of label {c!r}" for c, n in counts)
            line = f"{len(part):,} of the {len(task.splits[name]):,} {name} examples are used, {how}{of_each}"
            print(f"zograd: {line}", file=sys.stderr)
        missing = [repr(c) for c, n in counts if not n]
        if missing and part:
            more = f"raise --{option}-examples"
            if len(part) == len(task.splits[name]):
                more = "add some" if option == "train" else "pass --eval-file with some, or add a column split"
            warnings.warn(
                f"none of the {len(part):,} {name} examples has the label {', '.join(missing)}; {more}, or check the "
                f"data",
                stacklevel=3,
            )


@dataclass(frozen=True)
class Data:
    """What a run reads before its model: its task and examples, what is reported of them, and what is lowered."""

    task: Task
    examples: list[Example]
    held_out: list[Example]
    metric: Metric
    objective: Objective | None

    @property
    def all(self) -> list[Example]:
        """The training examples and the held-out ones."""
        return [*self.examples, *self.held_out]


def data_of(s: TrainSettings, metric: MetricFunction | None = None) -> Data:
    """The data of a run; metric: a function in place of the setting. Raises what does not fit the task."""
    task, examples, held_out = examples_of(s)
    asked = metric_of(s.metric if metric is None else metric, task.kind, len(task.label_words))
    objective = objective_of(s.objective, task.kind, s.answer_tokens, s.answer_temperature)
    check_objective(s, objective, task)
    return Data(task, examples, held_out, asked, objective)


def set_up(
    s: TrainSettings, folder: Path, *, stored: bool = False, stages: Stages | None = None, why: str = "",
    first: bool = True, metric: MetricFunction | None = None,
) -> Work:  # fmt: skip
    """Load the model and the task of a run in `folder`. Raises TaskError for an example that the model cannot take.

    stored: whether the folder holds this run already. stages: shows what is done. why: see `prepare`. first: whether
    this is the process that prints what is trained. metric: a function in place of the setting.
    """
    stages = Stages(quiet=True) if stages is None else stages
    with stages.stage(f"reading {s.task}"):
        data = data_of(s, metric)
    check_of_texts(s, data.task)
    announce(data.task, s, data.examples, data.held_out)
    loading.import_transformers(stages)
    s = with_head(s, data.task)
    with stages.stage(f"loading {s.model}"):
        texts = not stored and data.task.kind in ("completion", "text")
        p = prepare(s, folder, trying=not stored, why=why, texts=texts)
    if isinstance(data.objective, Contest):
        check_compares(s, p.run)
    if p.why and first:
        print(f"zograd: {p.why}", file=sys.stderr)
    with stages.stage(f"reading the weights and {len(data.all):,} examples, trying the model"):
        return _tried(p, data, folder, stored)


def check_of_texts(s: TrainSettings, task: Task) -> None:
    """Raise SettingsError for settings that are about texts, where the task holds images or recordings."""
    if task.reads == "text":
        return
    asked = {
        "--max-length": s.max_length is not None, "--truncate": s.truncate is not None, "--compile": bool(s.compile),
        "--offload disk": s.offload == "disk",
    }  # fmt: skip
    if option := next((name for name, given in asked.items() if given), None):
        raise SettingsError(f"{option} is for models of text, and {task.source} holds {task.reads}; leave it out")


def check_objective(s: TrainSettings, objective: Objective | None, task: Task) -> None:
    """Raise SettingsError for a method that does not go with what is lowered."""
    prefers = isinstance(objective, Contest)
    written = objective is not None and task.kind not in ("classification", "choice")
    if (written or prefers) and MENU[s.method].needs != "values":
        what = "answers of several points are compared" if prefers else "an answer is written in several"
        raise SettingsError(
            f"--method {s.method} looks into one forward of each example, and {what}; use a method that needs values "
            f"alone, such as zo_sgd or rank"
        )
    if not prefers:
        return
    if s.lr == "auto" or s.parallel != "data":
        given = "--lr auto measures a curvature" if s.lr == "auto" else f"--parallel {s.parallel} parts the points"
        raise SettingsError(
            f"--objective {s.objective} compares the points of a step, whose losses are shares of comparisons won; "
            f"{given}, which does not go with it: leave it out"
        )


def check_compares(s: TrainSettings, run: Run[Any]) -> None:
    """Raise SettingsError for a method that does not ask for all points of a step at once, where they are compared."""
    asked, wanted = len(run.ask()), run.method.evaluations
    run.abandon()
    if asked < max(2, wanted):
        raise SettingsError(
            f"--objective {s.objective} compares all points of a step with each other, and --method {s.method} asks "
            f"for {asked} of up to {wanted} at first; use a method that asks for all at once, such as zo_sgd or rank"
        )


def with_head(s: TrainSettings, task: Task) -> TrainSettings:
    """The settings with the number of classes of a new head, where the model is an encoder without one.

    A classifier of images gets one unless its classes have the names of the task's. Where no model is named, images and
    recordings have their own (`OF_MEDIA`). Raises TaskError for a bundled model that does not read what the task holds.
    """
    if task.reads != "text" and s.model == TrainSettings.model_fields["model"].default:
        s = s.model_copy(update={"model": OF_MEDIA[task.reads]})
    known = REGISTRY.get(s.model)
    if known is not None:  # said before anything is fetched
        check_reads(s.model, {"vision": "images", "speech": "speech"}.get(known.kind, "text"), task)
    if s.classes is not None or s.quantized or task.kind != "classification":
        return s
    try:
        config = loading.configuration_of(resolve_model(s.model))
        named = sorted(map(str, config.id2label.values()))
        of_images = task.reads == "images" and named != sorted(task.classes)
        new = of_images or loading.is_bare(config)
    except Exception:  # the loader says what is wrong with it
        return s
    return s.model_copy(update={"classes": len(task.label_words)}) if new else s


def _tried(p: Prepared, of: Data, folder: Path, stored: bool) -> Work:
    """See `set_up`: the work with a model and its examples, which are encoded, and a scorer that has checked both."""
    s, task, batches = p.settings, of.task, Batches(of.examples, p.settings.batch_size, p.settings.seed)
    if s.lora_init == "activations" and not (stored and lora_init.load(p.model, folder)):
        seen = [batches[k] for k in range(lora_init.BATCHES)]
        lora_init.from_activations(p.model, scorer_of(p.model, p.tokenizer, task, **s.encoding), seen)
    if not s.offload:
        keep_freed()
    base = identity(p.model, p.pages)  # reads every weight, so all are resident when the peak of inference is measured
    scorer = scorer_of(
        p.model, p.tokenizer, task, trained=list(p.trained.values()), cache_prefix=s.cache_prefix,
        metric=of.metric, objective=of.objective, **s.encoding,
    )  # fmt: skip
    for example in of.all:
        scorer.encode(example)
    if said := scorer.said(len(of.all)):
        print(f"zograd: {said}", file=sys.stderr, flush=True)
    if isinstance(p.store.inputs, InputsOfLeaves):
        p.store.inputs.filled = lambda: scorer.filled
    parts = [part for batch in batches.first_uses() for part in scorer.parts(batch, s.shards or 1)]
    evaluated = [[of.held_out[i] for i in bucket] for bucket in scorer.buckets(of.held_out, EVALUATION)]
    scorer.group([*parts, *evaluated])
    if s.offload == "cpu":  # later, a forward that stores states could make moves that wait, and change the last bits
        scorer.remember(of.all)
    described = {
        "task": task.name, "train": len(of.examples), s.eval_split: len(of.held_out), "source": task.source,
        "sha256": digest(task, of.examples, of.held_out), "asks": asdict(Form.of(task, s.completion_column)),
    }  # fmt: skip
    return Work(p, base, scorer, batches, of.held_out, described)


def choose_compiling(work: Work, s: TrainSettings) -> dict[str, Any]:
    """Whether the run compiles its blocks ("on") and "why": because it was asked for, or by a trial on its first batch.

    Raises SettingsError if compiling was asked for and does not work.
    """
    run, scorer = work.prepared.run, work.scorer
    part = scorer.parts(work.batches[0], s.shards or 1)[0]
    points = points_of(scorer, part, s.together)
    queries = run.ask()
    try:
        if s.compile is True:
            points(run.store, queries, 0)
            check(work.prepared.model, lambda: points(run.store, queries, 0))
            return {"on": True, "why": "asked for"}
        found = trial(work.prepared.model, lambda: points(run.store, queries, 0), s.steps)
    except CompileError as e:
        if s.compile is True:
            raise SettingsError(f"{e}; leave --compile out") from e
        return {"on": False, "why": str(e)}
    finally:
        run.abandon()
    if found is None:
        return {"on": False, "why": f"all evaluations take less than {WORTH:.0f} s"}
    return {"on": found.ratio < 1.0, "why": "measured", **asdict(found)}


def ride_along(method: Method[Any]) -> bool:
    """Whether each move of a method is along one product of signs (`RankOne`), without slots or weight decay.

    Such moves may be deferred for several steps: forwards add them as further sides of their probes.
    """
    one = type(method.rule) is SGD and method.estimator.n == 1
    return one and isinstance(method.law, RankOne) and not method.slots and not method.weight_decay
