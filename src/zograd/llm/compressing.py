"""`zograd compress`: a language model with fewer weights, chosen for a task, in the files that transformers loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from zograd import compress as parts
from zograd.files import whole_folder
from zograd.hub import Example, Task, load_task, select
from zograd.hub.sources import Source
from zograd.jsons import finite
from zograd.llm import loading
from zograd.llm.evaluate import choose, metric_for
from zograd.llm.restore import check_out, run_or_model, save
from zograd.llm.scoring.kinds import scorer_of
from zograd.llm.scoring.metrics import Metrics
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.settings import SettingsError
from zograd.llm.stages import Stages
from zograd.quantized import libraries

Scores = Literal["magnitude", "wanda", "task-aware"]
Factors = Literal["svd", "fwsvd"]
BATCH = 8
"""Examples of a batch of calibration."""
MASKS, FACTORS = "masks.safetensors", "factors.safetensors"
GENERAL = "mr"
"""The text that stands for any text: movie reviews."""


def compress(
    model: str,
    task: Source,
    out: str | Path,
    *,
    scores: Scores | None = None,
    sparsity: float = 0.5,
    factors: Factors | None = None,
    keep: float = 0.6,
    modules: str = "",
    general: str = GENERAL,
    calibration: int = 128,
    split: str | None = None,
    examples: int | None = 500,
    dtype: str = "auto",
    device: str = "cpu",
    seed: int = 0,
    metric: str | None = None,
    max_length: int | None = None,
    truncate: str | None = None,
    chat_template: bool = True,
    stages: Stages | None = None,
    **data: Any,
) -> dict[str, Any]:
    """Prune or factorise the linear layers of the blocks of a model, by what it does on a task, and save it.

    scores: prune each row by |W| ("magnitude"), |W| |X_j| on the training examples of the task ("wanda"), or with norms
        fused from the task and from `general` ("task-aware"; `compress.task_aware`). sparsity: the share of each row
        that becomes 0. Default: wanda. The norms are those of the dense model; Wanda itself recomputes them block by
        block.
    factors: in place of it, two thin factors a layer: "svd", or "fwsvd" with rows weighted by the Fisher information of
        the task, by autograd. keep: the share of the numbers of each layer that its factors have.
    modules: a regular expression of the names of layers inside of the blocks; all of them by default.
    calibration: training examples of the task (and of `general`) that are looked at. split, examples: what the metric
        before and after is measured on. stages: what shows the work; None: it is not shown. data: as `load_task` takes
        it.

    Returns the metrics before and after, numbers and bytes of the layers, and the folder. In `out` are the model, which
    transformers loads (of factors it has the products), and masks.safetensors or factors.safetensors: masks are scores
    for `laws.Scores`, factors are put into a model by `compress.load_factors`. Cost: a forward of each calibration
    example (and a backward pass for fwsvd), two evaluations. Memory: the model, and a float64 a weight of the layers.

    Raises SettingsError, ModelError, TaskError before anything is written.
    """
    check(scores, factors, sparsity, keep, calibration)
    how = factors or scores or "wanda"
    folder = Path(out)
    check_out(folder)
    stages = Stages(quiet=True) if stages is None else stages
    loaded, other = load_task(task, seed=seed, **data), load_task(general, seed=seed) if how == "task-aware" else None
    chosen, asked = choose(loaded, split, examples, seed), metric_for(metric, loaded)
    base, tokenizer = run_or_model(None, model, dtype=dtype, device=device, stages=stages)
    if libraries.is_quantized(base):
        raise SettingsError(
            f"{model} is quantized: its layers are integers; compress the dense model, then quantize it"
        )
    layers = layers_of(base, modules)
    encoding = {"max_length": max_length, "truncate": truncate, "chat": chat_template}
    scorer: Scorer = scorer_of(base, tokenizer, loaded, metric=asked, **encoding)
    with stages.counted("evaluating before", len(chosen.examples)) as progress:
        before = scorer.evaluate(chosen.examples, interval=True, progress=progress)
    seen = batches(loaded, calibration, seed)
    made: dict[str, Tensor] = {}
    if factors is None:
        norms = {} if how == "magnitude" else norms_of(scorer, layers, seen, stages)
        of_text: dict[str, Tensor] = {}
        if other is not None:
            reader = scorer_of(base, tokenizer, other, **encoding)
            of_text = norms_of(reader, layers, batches(other, calibration, seed), stages)
        with stages.stage(f"pruning {len(layers)} layers"):
            scored = {n: score(how, m.weight, norms.get(n), of_text.get(n)) for n, m in layers.items()}
            made = parts.prune_(layers, scored, sparsity)
        numbers = sum(int(mask.sum()) for mask in made.values())
    else:
        rows = fisher_of(scorer, layers, seen, stages) if factors == "fwsvd" else None
        with stages.stage(f"factorising {len(layers)} layers"):
            thin = parts.factorise_(base, layers, keep, rows)
        numbers = sum(m.first.numel() + m.second.numel() for m in thin.values())
        scorer = scorer_of(base, tokenizer, loaded, metric=asked, **encoding)
    with stages.counted("evaluating after", len(chosen.examples)) as progress:
        after = scorer.evaluate(chosen.examples, interval=True, progress=progress)
    with whole_folder(folder) as new:
        if factors is None:
            save_file({name: mask.cpu().contiguous() for name, mask in made.items()}, new / MASKS)
        else:
            parts.save_factors(thin, new / FACTORS)
            for name, module in thin.items():  # transformers knows no factors: it gets their products
                parts.replace_(base, name, dense_of(module, layers[name]))
        save(base, tokenizer, new)
    size = next(iter(layers.values())).weight.element_size()
    dense = sum(m.weight.numel() for m in layers.values())
    return dict(finite({
        "how": how, "layers": len(layers), "calibration": sum(map(len, seen)), "split": chosen.split,
        "numbers_before": dense, "numbers_after": numbers, "bytes_before": dense * size,
        "bytes_after": numbers * size + (dense // 8 if factors is None else 0),
        "metric": before.metric, "examples": before.examples, **_named("before", before), **_named("after", after),
        "failure": scorer.why_not_finite(after), "folder": str(folder), "file": MASKS if factors is None else FACTORS,
    }))  # fmt: skip


def check(scores: str | None, factors: str | None, sparsity: float, keep: float, calibration: int) -> None:
    """Raise SettingsError for settings that do not go together, or mean nothing."""
    if scores is not None and factors is not None:
        raise SettingsError(f"--scores {scores} prunes and --factors {factors} factorises: choose one")
    known = {"scores": ("magnitude", "wanda", "task-aware"), "factors": ("svd", "fwsvd")}
    for name, value in (("scores", scores), ("factors", factors)):
        if value is not None and value not in known[name]:
            raise SettingsError(f"--{name} {value}: choose one of {', '.join(known[name])}")
    if not 0.0 < sparsity < 1.0:
        raise SettingsError(f"--sparsity {sparsity}: it is the share of each row that becomes 0, between 0 and 1")
    if not 0.0 < keep < 1.0:
        raise SettingsError(f"--keep {keep}: it is the share of the numbers of a layer that stay, between 0 and 1")
    if calibration < 1:
        raise SettingsError(f"--calibration {calibration}: it counts training examples, at least 1")


def layers_of(model: Any, modules: str) -> dict[str, nn.Linear]:
    """The linear layers inside of the blocks whose names match. Raises SettingsError where there is none."""
    inside = {id(m) for m in loading.blocks(model).modules()}
    try:
        found = parts.linear_layers(model, modules)
    except ValueError as e:
        raise SettingsError(f"--modules {modules}: {e}") from None
    found = {name: m for name, m in found.items() if id(m) in inside}
    if not found:
        raise SettingsError(f"--modules {modules!r}: no linear layer of the blocks of this model matches")
    return found


def batches(task: Task, count: int, seed: int) -> list[list[Example]]:
    """Training examples of a task, in batches."""
    found = select(task, "train", count, seed=seed)
    return [list(found[k : k + BATCH]) for k in range(0, len(found), BATCH)]


def told(
    scorer: Scorer, seen: Sequence[list[Example]], progress: Callable[[float], object]
) -> Iterator[Callable[[], Tensor]]:
    """The loss of each batch, to be computed; progress hears of a batch when the next one is asked for."""
    for batch in seen:
        yield partial(scorer.loss, batch)
        progress(len(batch))


def norms_of(
    scorer: Scorer, layers: dict[str, nn.Linear], seen: Sequence[list[Example]], stages: Stages
) -> dict[str, Tensor]:
    """The norms of what enters the layers while the scorer reads these batches."""
    with stages.counted(f"reading {scorer.task.name}", sum(map(len, seen))) as progress:
        return parts.activation_norms(layers, told(scorer, seen, progress), lambda: scorer.filled)


def fisher_of(
    scorer: Scorer, layers: dict[str, nn.Linear], seen: Sequence[list[Example]], stages: Stages
) -> dict[str, Tensor]:
    """The weights of the rows: an example a batch, since the Fisher information is of single examples."""
    single = [[example] for batch in seen for example in batch]
    with stages.counted("differentiating", len(single)) as progress:
        return parts.row_fisher_by_autograd(layers, told(scorer, single, progress))


def score(how: str, w: Tensor, norms: Tensor | None, general: Tensor | None) -> Tensor:
    """The scores of a weight in the way that was asked for."""
    if norms is None:
        return parts.magnitude(w)
    return parts.wanda(w, norms) if how == "wanda" or general is None else parts.task_aware(w, general, norms)


def dense_of(module: parts.Factored, layer: nn.Linear) -> nn.Linear:
    """The linear layer with the product of the factors for its weight."""
    with torch.no_grad():
        layer.weight.copy_(module.dense())
    return layer


def _named(when: str, metrics: Metrics) -> dict[str, Any]:
    found = asdict(metrics)
    return {f"{name}_{when}": found[key] for name, key in (("value", "value"), ("low", "low"), ("high", "high"),
                                                            ("loss", "loss"))}  # fmt: skip
