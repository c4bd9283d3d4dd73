"""Build a run from its settings: model, method, trained tensors, store, task and batches."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zograd import cores
from zograd.blockwise import Ends
from zograd.core.run import Method, Run
from zograd.estimators import Estimator, FromBlocks, NodePerturbation
from zograd.hub import Example, Task, resolve_model
from zograd.hub.registry import REGISTRY
from zograd.hub.wheels import sha256_of
from zograd.laws import OnLayerInputs
from zograd.llm import loading, lora_init
from zograd.llm.compiled import WORTH, CompileError, check, trial
from zograd.llm.data import Data, announce, check_of_texts, data_of, digest
from zograd.llm.inputs import InputsOfLeaves
from zograd.llm.loading import offloaded as offloading
from zograd.llm.loading.errors import ModelError, first_line
from zograd.llm.method import build_method, check_forwards, check_slots, memory_at, rate_of_blocks, shape_of
from zograd.llm.oracle import points_of
from zograd.llm.parts import Parts, parts_of
from zograd.llm.prompts import Form
from zograd.llm.recipe import chosen, for_depth, instead
from zograd.llm.schedule import settled
from zograd.llm.scoring.batches import Batches
from zograd.llm.scoring.kinds import OF_MEDIA, check_reads, scorer_of
from zograd.llm.scoring.metrics import MetricFunction
from zograd.llm.scoring.objectives import LOSS, Contest
from zograd.llm.scoring.scorer import EVALUATION, Scorer
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.stages import Stages
from zograd.offload.mapped import Offloaded, Pages
from zograd.offload.streamed import Streamed
from zograd.runs.identity import identity
from zograd.runs.memory import keep_freed
from zograd.stores import Store

FIRST = 64
"""Examples whose tokens a run keeps a digest of."""


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
    check_forwards(s.method, estimator, offload=bool(s.offload), compiled=bool(s.compile))
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
        check_slots(method, any(t in mapped for t in trained.values()))
        offloading.make_trainable(trained, mapped, folder)
        offloading.stream(module, mapped)
    elif s.offload == "cpu":
        pages = streamed = offloading.to_device(
            module, s.device, keep=trained.values() if s.train in loading.ADAPTERS else ()
        )
        check_slots(method, any(t in streamed for t in trained.values()))
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
    threads = cores.threads(torch.get_num_threads()) if s.threads is None else s.threads
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
    check_parts(s, len(data.examples))
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
    if first and not stored:
        warn_of_unread(s, data, p)
    with stages.stage(f"reading the weights and {len(data.all):,} examples, trying the model"):
        return _tried(p, data, folder, stored)


def check_parts(s: TrainSettings, examples: int) -> None:
    """Raise SettingsError for more parts of a batch than it has examples: all that there are, where they are few."""
    size = min(s.batch_size, examples)
    if (s.shards or 1) > size:
        raise SettingsError(
            f"a batch of {size} examples cannot be cut into {s.shards} parts (there are {examples} training examples, "
            f"and --batch-size is {s.batch_size}); lower --shards or the number of processes, or give more data"
        )


def warn_of_unread(s: TrainSettings, data: Data, p: Prepared) -> None:
    """Warn of settings that do nothing with this data and this model."""
    kind, of = loading.kind_of(loading.plain_model(p.model)), dict[str, str]()
    if s.objective != LOSS and data.task.kind in ("classification", "choice"):  # of the loss: `warn_of_unused`
        for name in ("answer_temperature", "answer_tokens"):
            if getattr(s, name) != TrainSettings.model_fields[name].default:
                of[f"--{name.replace('_', '-')}"] = "answers that a model writes, and here it chooses one of several"
    if not s.eos and data.task.kind != "completion":
        of["--no-eos"] = "completions, and the data has none"
    elif not s.eos and kind in ("pairs", "speech"):
        of["--no-eos"] = "models that continue a text, and a decoder behind an encoder ends each answer"
    for option, what in of.items():
        warnings.warn(f"{option} does nothing here: it is for {what}", stacklevel=2)


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
    scorer.check_answers(of.all if scorer.writes else of.held_out)
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
    if task.reads == "text":
        described["tokens"] = tokens_digest(scorer, of.all[:FIRST])
    if s.protect is not None:
        described["protect"] = sha256_of(Path(s.protect))
    return Work(p, base, scorer, batches, of.held_out, described)


def tokens_digest(scorer: Scorer, examples: Sequence[Example]) -> str:
    """SHA-256 of the tokens of some examples: of tokenizer, chat template and prompt, as far as they count."""
    h = hashlib.sha256()
    for example in examples:
        for sequence in scorer.encode(example):
            h.update(json.dumps([list(map(int, sequence.ids)), int(sequence.scored_from)]).encode())
    return h.hexdigest()


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
